"""What other models have decoded, for OSCAR's network to restore: where DiffC's streams end, and CoD's single step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from codling.bitstream.container import CodecId
from codling.codecs.cod import CoDCodec
from codling.models.cod import CoDConfig
from codling.models.oscar import Oscar
from codling.training.walks import Jumps
from codling.weights.catalogue import read_config
from codling.weights.registry import load, locate
from codling.weights.store import Manifest


class Decoded(Protocol):
    """Pictures as some model decodes them."""

    def draw(self, images: Tensor, numbers: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """States of images (B, 3, H, W) in [-1, 1], their coarse images, and their noise fractions (B,).

        numbers: that everything random about each is a function of.
        """
        ...


@dataclass(frozen=True)
class OneStep:
    """Pictures that a CoD model decodes in one step.

    network: what is to restore them, which says how noisy it takes them for.
    """

    codec: CoDCodec
    network: Oscar

    @torch.no_grad()
    def draw(self, images: Tensor, numbers: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        random = [np.random.default_rng(number) for number in numbers]
        coarse = torch.cat([
            self.codec.faithful(self.codec.indices(image[None])[None], seed=int(generator.integers(2**63)))
            for image, generator in zip(images.cpu(), random, strict=True)
        ])[..., : images.shape[2], : images.shape[3]].to(images)  # fmt: skip
        noise = [generator.standard_normal(images.shape[1:], np.float32) for generator in random]
        # The same for all, so that what is costly to find is found for one.
        s = self.network.noise_of(torch.tensor([self.codec.finishing_error()], device=images.device))
        s = s.expand(len(images))
        return self.network.noisy(coarse, s, torch.from_numpy(np.stack(noise)).to(images)), coarse, s


def decoded_by(name: str, network: Oscar, *, device: torch.device) -> Decoded:
    """Pictures as a model, by name or directory, decodes them, for a network to restore.

    Raises ConfigError or ModelError if it is neither a denoiser of pixels nor a CoD model that could be finished.
    """
    directory = locate(name)[1]
    if not isinstance(Manifest.read(read_config(directory), str(directory)).config, CoDConfig):
        return Jumps.of(name, device=device)
    codec = load(name, device=device, codec=CodecId.COD)
    assert isinstance(codec, CoDCodec)
    # What cannot be finished says so now, and not when the first picture is drawn.
    codec.finishing_error()
    codec.model.requires_grad_(False)
    return OneStep(codec, network)
