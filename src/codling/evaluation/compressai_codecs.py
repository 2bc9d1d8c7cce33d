"""Codecs of CompressAI, where that is installed: real files of their entropy-coded strings."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from codling.bitstream.container import Reader, varint
from codling.errors import ConfigError

PREFIX = "compressai-"
# Sides are padded to multiples of this: six halvings, the most that the zoo's models have.
GRID = 64


def available() -> list[str]:
    """Names of the zoo's models with our prefix; empty where CompressAI is not installed."""
    try:
        from compressai.zoo import image_models
    except ImportError:
        return []
    return [PREFIX + name for name in image_models]


@lru_cache(maxsize=1)
def network(name: str, quality: int) -> Any:
    """A pretrained model, ready to code; weights are downloaded by CompressAI on first use. Raises ConfigError."""
    try:
        from compressai.zoo import image_models
    except ImportError as error:
        raise ConfigError(f"{name}: this codec needs the package compressai ({error})") from error
    try:
        model = image_models[name.removeprefix(PREFIX)](quality=quality, pretrained=True)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(f"{name} at quality {quality} cannot be had: {error}") from error
    model.eval()
    model.update(force=True)
    return model


@torch.inference_mode()
def encode(picture: np.ndarray, name: str, quality: int) -> bytes:
    """(H, W, 3) uint8 -> width, height, shape of the latent, then each string with its length."""
    height, width = picture.shape[:2]
    x = torch.from_numpy(picture / np.float32(255)).permute(2, 0, 1)[None]
    padded = F.pad(x, (0, -width % GRID, 0, -height % GRID), mode="replicate")
    coded = network(name, quality).compress(padded)
    parts = [varint(width), varint(height), *(varint(int(side)) for side in coded["shape"])]
    for (string,) in coded["strings"]:
        parts += [varint(len(string)), string]
    return b"".join(parts)


@torch.inference_mode()
def decode(data: bytes, name: str, quality: int) -> np.ndarray:
    """The bytes alone -> (H, W, 3) uint8."""
    reader, strings = Reader(data), []
    width, height = reader.varint("width"), reader.varint("height")
    shape = (reader.varint("rows"), reader.varint("columns"))
    while reader.place < len(data):
        strings.append([reader.take(reader.varint("length"), "string")])
    image = network(name, quality).decompress(strings, shape)["x_hat"][0, :, :height, :width]
    out: np.ndarray = (image.clamp(0, 1) * 255).round().permute(1, 2, 0).to(torch.uint8).numpy()
    return out
