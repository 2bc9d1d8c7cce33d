"""Pictures larger than a model's tile: overlapping tiles, blended where they overlap.

A tile is a picture to the network (positions are normalised to it), so large pictures stay within what the network was
trained on, and memory and time grow with the area instead of its square. All sides are in multiples of the model's
grid, so the plan is exact at the stride of pixels, states, conditions and indices alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Tiles a network sees in one batch: more gains no speed on a CPU and costs memory.
BATCH = 4


@dataclass(frozen=True)
class Tile:
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor, stride: int = 1) -> Tensor:
        """The part of `x` (B, C, H / stride, W / stride), or (B, H / stride, W / stride), under this tile."""
        top, left = self.top // stride, self.left // stride
        return x[..., top : top + self.height // stride, left : left + self.width // stride]


def plan_tiles(*, height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Tiles of at most `tile` px a side that cover the picture, neighbours sharing at least `overlap` px."""
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    return [Tile(top, left, min(tile, height), min(tile, width)) for top in rows for left in columns]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [min(i * (tile - overlap), length - tile) for i in range(count)]


def blend(
    function: Callable[[Tensor, list[int]], Tensor], x: Tensor, tiles: list[Tile], *, overlap: int, stride: int
) -> Tensor:
    """Apply `function(pieces, numbers)` to batches of tiles of `x` (1, C, H, W) and blend the results, shaped alike.

    `x` has `stride` pixels a sample; `numbers` says which tiles a batch holds. Weights fall linearly over the overlap.
    """
    if len(tiles) == 1:
        return function(x, [0])
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
    mask = _ramp(tiles[0].height // stride, overlap // stride, x.device)[:, None] * _ramp(
        tiles[0].width // stride, overlap // stride, x.device
    )
    for numbers in batches(len(tiles)):
        pieces = function(torch.cat([tiles[n].cut(x, stride) for n in numbers]), numbers)
        for n, piece in zip(numbers, pieces, strict=True):
            tiles[n].cut(total, stride).add_(piece * mask)
            tiles[n].cut(weights, stride).add_(mask)
    return total / weights


def batches(count: int) -> list[list[int]]:
    """Tile numbers in batches."""
    return [list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]


def assemble(pieces: list[Tensor], tiles: list[Tile], *, height: int, width: int, stride: int) -> Tensor:
    """Maps of tiles (h, w), one a tile, -> the map of the picture: each entry from the tile it lies deepest in."""
    out = torch.zeros(height // stride, width // stride, dtype=pieces[0].dtype)
    depth = torch.full(out.shape, -1.0)
    for tile, piece in zip(tiles, pieces, strict=True):
        own = torch.minimum(_depth(piece.shape[0])[:, None], _depth(piece.shape[1]))
        deeper = own > tile.cut(depth, stride)
        tile.cut(out, stride)[deeper] = piece[deeper]
        tile.cut(depth, stride)[deeper] = own[deeper]
    return out


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    """Linear from both ends, 1 beyond the overlap; never 0."""
    return (_depth(length).to(device) / max(overlap, 1)).clamp(max=1.0)


def _depth(length: int) -> Tensor:
    place = torch.arange(length, dtype=torch.float32) + 0.5
    return torch.minimum(place, length - place)


def pad_to_grid(image: Tensor, grid: int) -> Tensor:
    """Image (B, 3, H, W) with its last row and column repeated up to multiples of the grid, float32."""
    height, width = image.shape[-2:]
    return F.pad(image.float(), (0, -width % grid, 0, -height % grid), mode="replicate")
