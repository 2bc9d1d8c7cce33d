"""What a denoiser sees inside DiffC: the states of walks from noise to a picture, made with its own estimates.

In a codec's states some bands have just been coded, some wait at noise levels of earlier steps and were brought along
by the posterior mean, and some say nothing yet, all by the plan of the picture at hand. No noising of a picture gives
quite these, so training walks: a step's estimate, which the loss is about, is also what the next state is made of. The
channel coder is not run; what it would say is drawn as it is meant to be distributed.

OSCAR's network sees only where walks end, see `Jumps`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codling.bitstream.container import CodecId
from codling.codecs.activity_map import Tables, measure, prior_power
from codling.codecs.backbones import DenoiserBackbone
from codling.codecs.chain import Chain
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import DiffCConfig
from codling.errors import ConfigError
from codling.models.denoiser import Denoiser
from codling.weights.registry import load


class Walk:
    """One walk to a picture.

    chain: where it is. Unless it is Gaussian, its estimate is to be set before each `step`. left: noise levels
    (1024ths) still to come.
    """

    def __init__(
        self, image: np.ndarray, tables: Tables, settings: DiffCConfig, *, gaussian: bool = False, final: int,
        code: int, random: np.random.Generator,
    ):  # fmt: skip
        """At pure noise. image: (3, H, W) in [-1, 1]. gaussian: whether estimates are those of the tables alone. final:
        level of the last step. code: of the activity map's cells, 0 for none."""
        shape = (image.shape[0], image.shape[1], image.shape[2])
        activity = None
        if code and tables.local is not None:
            activity = measure(image, prior_power(tables.whole, *shape[1:]), code, stride=1)
        table, layout = tables.layout(activity, *shape[1:])
        self.chain = Chain.begin(_no_velocity, table, settings, layout, shape, gaussian=gaussian)
        self.left = settings.levels(final)
        self._source, self._scale, self._random = layout.coefficients(image), 0, random
        self.chain.measure_colours(self._source)

    def step(self) -> None:
        """Go to the next level, told of the picture what an ideal channel tells: the target with unit noise."""
        following, chain = self.left.pop(0), self.chain
        self._scale = chain.scale_of(self._source, following, self._scale)
        coded = chain.worth_coding(chain.ratios(following, self._scale))
        target = chain.target(self._source, following)
        chain.advance(following, coded, target + self._random.standard_normal(target.shape, np.float32))


@dataclass(frozen=True)
class Walks:
    """Walks as a model's streams go: planned with its tables, by its settings."""

    tables: Tables
    settings: DiffCConfig

    @classmethod
    def of(cls, name: str) -> "Walks":
        """As those of a model, by name or directory. Raises ConfigError if DiffC has no streams of it in pixels."""
        return cls.of_codec(load_diffc(name))

    @classmethod
    def of_codec(cls, codec: DiffCCodec) -> "Walks":
        """As those of a loaded model."""
        if codec.backbone.conditional or codec.backbone.stride != 1:
            raise ConfigError(
                f"streams to train on must be those of a denoiser of pixels without a condition, got {codec.name!r}; "
                "use linear or diffc-xs"
            )
        return cls(codec.tables[False], codec.config)

    def draw(self, image: np.ndarray, random: np.random.Generator, *, gaussian: bool = False) -> Walk:
        """To an image (3, H, W), ending somewhere in the model's times; cells have their middle size half the time."""
        final = int(random.integers(self.settings.times[-1], self.settings.times[0], endpoint=True))
        code = int(random.choice([0, 1, 2, 2, 2, 3]))
        return Walk(image, self.tables, self.settings, gaussian=gaussian, final=final, code=code, random=random)


@dataclass(frozen=True)
class Jumps:
    """States as a model's streams end with, and their coarse images: all steps from noise to some level are taken.

    network: whose estimates they are taken by, None for those of the tables alone.
    """

    walks: Walks
    network: Denoiser | None

    @classmethod
    def of(cls, name: str, *, device: torch.device, linear: bool = False) -> "Jumps":
        """As those of a model, by name or directory. linear: it must be one whose steps need no network.

        Raises ConfigError if DiffC has no streams of it in pixels, or if it is not as it must be.
        """
        codec = load_diffc(name)
        walks = Walks.of_codec(codec)
        if codec.backbone.gaussian:
            return cls(walks, None)
        if linear:
            raise ConfigError(f"jump_as wants a model whose steps need no network, got {name!r}; use linear")
        assert isinstance(codec.backbone, DenoiserBackbone) and isinstance(codec.backbone.model, Denoiser)
        return cls(walks, codec.backbone.model.to(device).requires_grad_(False))

    @torch.no_grad()
    def draw(self, images: Tensor, numbers: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """States of images (B, 3, H, W) in [-1, 1], their coarse images, and their noise fractions (B,).

        numbers: that everything random about each is a function of.
        """
        walks = [
            self.walks.draw(image, np.random.default_rng(number), gaussian=self.network is None)
            for image, number in zip(images.cpu().numpy(), numbers, strict=True)
        ]
        active = walks
        while active:
            self._estimate([walk.chain for walk in active], images.device)
            active = [walk for walk in active if walk.left]
            for walk in active:
                walk.step()
        chains = [walk.chain for walk in walks]
        state = torch.cat([chain.sample() for chain in chains])
        coarse = torch.cat([chain.image_estimate() for chain in chains])
        return state.to(images), coarse.to(images), torch.tensor([chain.noise for chain in chains]).to(images)

    def _estimate(self, chains: list[Chain], device: torch.device) -> None:
        """One evaluation of the network for all."""
        if self.network is None:
            return
        level = torch.tensor([chain.noise for chain in chains], device=device)
        found = self.network(torch.cat([chain.seen() for chain in chains]).to(device), level)
        for chain, estimate in zip(chains, found.float().cpu().numpy(), strict=True):
            chain.estimate = estimate


def load_diffc(name: str) -> DiffCCodec:
    """A model's codec `diffc`, by name or directory."""
    codec = load(name, device=torch.device("cpu"), codec=CodecId.DIFFC)
    assert isinstance(codec, DiffCCodec)
    return codec


def _no_velocity(x: Tensor, time: Tensor) -> Tensor:
    raise RuntimeError("the estimates of a walk are set, not asked for")
