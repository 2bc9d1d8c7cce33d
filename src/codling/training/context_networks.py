"""Training of the networks of integers that predict a model's indices, see `bitstream.context_network`.

What is trained are real numbers, rounded on every pass to the integers that they will be stored as; the gradient goes
straight through the rounding. So the loss is what files will cost, in bits an index.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.bitstream.context_network import MOST_HIDDEN, REACH, ContextNetwork, bordered
from codling.bitstream.kernels import ACTIVE, MIXING_SHIFT
from codling.errors import ConfigError
from codling.training.schedule import rate_share

# Integers a unit: of activations, of mixing weights, of output weights; biases have those of the products.
ACTIVE_UNIT, MIXING_UNIT, OUTPUT_UNIT = 32, 1 << MIXING_SHIFT, 16
BYTE, WORD = 127, 32_767
# Of its own map: the four neighbours; of the first map also the next but one to the left and above.
OWN_LOOKS = ((0, 0, -1), (0, -1, 0), (0, -1, -1), (0, -1, 1))
FARTHER_LOOKS = ((0, 0, -2), (0, -2, 0))
# Of the map before: the same place and the four beside it, of which two are not known of its own.
BACK_LOOKS = ((1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 0, -1), (1, -1, 0))


@dataclass(frozen=True, kw_only=True)
class ContextTraining:
    """hidden: units of the network. batch: indices a step, drawn at random. epochs: how often each is drawn on average,
    but there are at least `least_steps`; many more, and the network knows its training pictures by heart.

    learning_rate: after `warmup` steps constant, then linear to zero over the last `decay_share` of the steps.
    """

    hidden: int = 96
    batch: int = 2048
    epochs: float = 1.5
    least_steps: int = 800
    learning_rate: float = 1.6e-2
    weight_decay: float = 0.02
    warmup: int = 50
    decay_share: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.hidden <= MOST_HIDDEN:
            raise ConfigError(f"context networks: hidden must be 1 to {MOST_HIDDEN}, got {self.hidden}")
        if not self.epochs > 0:
            raise ConfigError(f"context networks: epochs must be above 0, got {self.epochs}")

    def steps(self, count: int) -> int:
        """Length of a run on so many indices."""
        return max(self.least_steps, round(self.epochs * count / self.batch))


class Predictor(nn.Module):
    """A `ContextNetwork` while it learns."""

    looks: Tensor

    def __init__(self, looks: Sequence[tuple[int, int, int]], symbols: int, hidden: int):
        super().__init__()
        self.register_buffer("looks", torch.tensor(looks, dtype=torch.int8))
        self.embeddings = nn.ModuleList(nn.Embedding(symbols + 1, hidden) for _ in looks)
        self.mixing, self.output = nn.Linear(hidden, hidden), nn.Linear(hidden, symbols)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.3)  # type: ignore[arg-type]

    def forward(self, around: Tensor) -> Tensor:
        """Indices around (m, n), the number of symbols for those outside -> logits (m, symbols), in bits."""
        rows = (embedding(around[:, place]) for place, embedding in enumerate(self.embeddings))
        top = ACTIVE / ACTIVE_UNIT
        a = torch.stack([rounded(row, ACTIVE_UNIT, BYTE) for row in rows]).sum(0).clamp(0, top)
        mixing, bias = self.mixing, rounded(self.mixing.bias, ACTIVE_UNIT * MIXING_UNIT, WORD)
        mixed = F.linear(a, rounded(mixing.weight, MIXING_UNIT, BYTE), bias)
        active = a + floored(mixed, ACTIVE_UNIT).clamp(0, top)
        bias = rounded(self.output.bias, ACTIVE_UNIT * OUTPUT_UNIT, WORD)
        return F.linear(active, rounded(self.output.weight, OUTPUT_UNIT, BYTE), bias)

    @torch.no_grad()
    def integers(self) -> ContextNetwork:
        """The network as it is stored."""
        return ContextNetwork(
            looks=self.looks.cpu().numpy(),
            embeddings=np.stack([_stored(e.weight, ACTIVE_UNIT, BYTE) for e in self.embeddings]),  # type: ignore[arg-type]
            mixing=_stored(self.mixing.weight, MIXING_UNIT, BYTE),
            mixing_bias=_stored(self.mixing.bias, ACTIVE_UNIT * MIXING_UNIT, WORD),
            output=_stored(self.output.weight, OUTPUT_UNIT, BYTE),
            output_bias=_stored(self.output.bias, ACTIVE_UNIT * OUTPUT_UNIT, WORD),
        )


def looks_of(number: int) -> tuple[tuple[int, int, int], ...]:
    """Where the network of map `number`, from 0, looks: around in its own, and where it is in all before it."""
    if number == 0:
        return OWN_LOOKS + FARTHER_LOOKS
    return (*OWN_LOOKS, *BACK_LOOKS, *((back, 0, 0) for back in range(2, number + 1)))


def contexts(maps: np.ndarray, looks: np.ndarray, outside: int) -> np.ndarray:
    """Maps of indices (n, h, w) -> what is around each of the last map, (h * w, looks); `outside` beyond the edges."""
    known, (number, (h, w)) = bordered(maps), (len(maps) - 1, maps.shape[1:])
    columns = [
        known[number - back, REACH + down : REACH + down + h, REACH + right : REACH + right + w].ravel()
        for back, down, right in looks.tolist()
    ]
    out = np.stack(columns, -1)
    return np.where(out < 0, outside, out)


def train_context_network(
    maps: Sequence[np.ndarray],
    symbols: int,
    config: ContextTraining,
    *,
    report: Callable[[int, float], None],
) -> ContextNetwork:
    """A network that predicts the last of the maps (n, h, w) of pictures, given those before it.

    report: called every hundred steps and after the last: steps done, and the mean loss since then in bits an index.
    """
    torch.manual_seed(config.seed)
    predictor = Predictor(looks_of(len(maps[0]) - 1), symbols, config.hidden)
    looks = predictor.looks.numpy()
    around = torch.from_numpy(np.concatenate([contexts(m, looks, symbols) for m in maps]).astype(np.int16))
    index = torch.from_numpy(np.concatenate([m[-1].ravel() for m in maps]).astype(np.int16))
    share = torch.bincount(index.int(), minlength=symbols).float() + 1
    predictor.output.bias.data = (share / share.sum()).log2()
    optimiser = torch.optim.AdamW(
        predictor.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    generator, losses = torch.Generator().manual_seed(config.seed), list[float]()
    steps = config.steps(len(index))
    for step in range(steps):
        rate = config.learning_rate * rate_share(step, steps, warmup=config.warmup, decay_share=config.decay_share)
        for group in optimiser.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(index), (config.batch,), generator=generator)
        loss = F.cross_entropy(predictor(around[chosen].int()) * math.log(2), index[chosen].long()) / math.log(2)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            report(step + 1, float(np.mean(losses)))
            losses.clear()
    return predictor.integers()


def rounded(value: Tensor, unit: int, limit: int) -> Tensor:
    """Values as whole numbers of 1 / unit, none beyond limit / unit; the gradient is that of the values."""
    return _straight_through(value, _whole(value, unit, limit) / unit)


def floored(value: Tensor, unit: int) -> Tensor:
    """As `rounded`, down."""
    return _straight_through(value, (value.detach() * unit).floor() / unit)


def _straight_through(value: Tensor, changed: Tensor) -> Tensor:
    return value + (changed - value).detach()


def _whole(value: Tensor, unit: int, limit: int) -> Tensor:
    return (value.detach() * unit).round().clamp(-limit, limit)


def _stored(value: Tensor, unit: int, limit: int) -> np.ndarray:
    return _whole(value, unit, limit).cpu().numpy().astype(np.int8 if limit == BYTE else np.int16)
