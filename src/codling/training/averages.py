"""Running averages: of the weights, and of the codebook's members."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from codling.training.checkpoint import placed


class WeightAverage:
    """Exponential moving average of a model's parameters; the decay grows from 0 so that the start is forgotten."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.named_parameters():
            self.values[name].lerp_(value.detach(), 1 - decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take the place of these values, sharded or not."""
        self.values = {name: placed(values[name], value) for name, value in self.values.items()}


class CodebookAverage:
    """Moves each codeword to the running mean of the features it codes, and revives codewords that code nothing.

    The usual alternative to a codebook gradient (van den Oord et al. 2017, appendix A.1). A codeword whose running
    count falls below `REVIVE` of the mean count is put on a feature of the current batch.
    """

    DECAY = 0.98
    REVIVE = 0.1

    def __init__(self, embedding: Tensor):
        self.count = torch.zeros(len(embedding), device=embedding.device)
        self.sum = torch.zeros_like(embedding, requires_grad=False)

    @torch.no_grad()
    def begin(self, embedding: Tensor, features: int) -> None:
        """Start at the codewords of a trained codebook; `features`: how many of them a batch has.

        Models do not keep the counts. All alike, and together those of a batch, is the neutral prior: one batch weighs
        as it does in the midst of a run, and codewords that it lacks are not thought dead before the running count says
        so. From no counts at all the first batch would replace the codebook.
        """
        self.count.fill_(features / len(embedding))
        self.sum.copy_(embedding * self.count[:, None])

    @torch.no_grad()
    def update(self, embedding: Tensor, features: Tensor, indices: Tensor, *, seed: int) -> None:
        """`features` (N, D) and the `indices` (N,) that they got; without any, nothing changes."""
        if not len(features):
            return
        count = torch.bincount(indices, minlength=len(embedding)).float()
        summed = torch.zeros_like(self.sum).index_add_(0, indices, features)
        first = self.count.sum() == 0
        weight = 1.0 if first else 1 - self.DECAY
        self.count.lerp_(count, weight)
        self.sum.lerp_(summed, weight)
        used = self.count > self.REVIVE * self.count.mean()
        embedding[used] = (self.sum / self.count.clamp(min=1e-6)[:, None])[used]
        if dead := int((~used).sum()):
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randint(len(features), (dead,), generator=generator).to(features.device)
            embedding[~used] = features[chosen]
            self.count[~used] = self.count.mean()
            self.sum[~used] = features[chosen] * self.count.mean()
