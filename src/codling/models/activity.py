"""How much goes on where: a picture's power in every cell of a grid, beside what photographs have on average."""

from torch import Tensor
from torch.nn import functional as F

from codling.nn.spectral import dct_matrix, radius
from codling.rcc.subbands import Box, boxes

# Frequencies that count, in cycles a pixel: where cells of 32 to 128 px are told apart, and few bytes reach.
BAND = (1 / 64, 1 / 8)
# Power that no cell falls below, relative to the average: flat ones have a finite logarithm.
LEAST = 2.0**-12


def activity(spectrum: Tensor, power: Tensor, rows: int, columns: int) -> Tensor:
    """log2 of the power in the cells of a grid, relative to the expected: (B, rows, columns).

    spectrum: (B, C, H, W), DCT coefficients of pictures that the grid cuts evenly. power: (C, H, W), their expected
    squares. For pictures of the size that training has: the transform takes side^2 numbers.
    """
    white = whitened(spectrum, power)
    along, across = (dct_matrix(side, spectrum) for side in spectrum.shape[-2:])
    return octaves(along.T @ white @ across, rows, columns)


def whitened(spectrum: Tensor, power: Tensor, *, stride: int = 1) -> Tensor:
    """The frequencies that count, of a mean square of 1 over the picture if `power` holds. stride: pixels a sample."""
    height, width = spectrum.shape[-2:]
    frequency = radius(height, width, spectrum) / stride
    inside = (frequency >= BAND[0]) & (frequency <= BAND[1])
    return spectrum * inside / (power * inside.float().mean().clamp(min=LEAST)).sqrt()


def octaves(white: Tensor, rows: int, columns: int) -> Tensor:
    """log2 of the mean square of a whitened picture (B, C, H, W) in the cells of a grid: (B, rows, columns)."""
    squares = white.square().mean(1, keepdim=True)
    return F.adaptive_avg_pool2d(squares, (rows, columns))[:, 0].clamp(min=LEAST).log2()


def to_places(spectrum: Tensor) -> Tensor:
    """`rcc.subbands.to_places` of a batch (B, C, H, W)."""
    out = spectrum.clone()
    for box, rows, columns in _transforms(spectrum):
        out[..., *box.at] = rows.T @ spectrum[..., *box.at] @ columns
    return out


def from_places(places: Tensor) -> Tensor:
    """The inverse of `to_places`."""
    out = places.clone()
    for box, rows, columns in _transforms(places):
        out[..., *box.at] = rows @ places[..., *box.at] @ columns.T
    return out


def place_means(values: Tensor) -> Tensor:
    """A value for every DCT coefficient (C, H, W) -> its mean over each box, as boxes are told apart no further."""
    out = values.clone()
    for box in boxes(*values.shape[-2:]):
        out[..., *box.at] = values[..., *box.at].mean((-2, -1), keepdim=True)
    return out


def spread(activity: Tensor, height: int, width: int) -> Tensor:
    """Activity of every cell (B, rows, columns) -> of every coefficient in places, (B, height, width).

    A coefficient wider than a cell has that of the mean power of its cells; one without a place that of the picture.
    """
    power = 2 ** activity[:, None]
    out = power.mean((2, 3)).view(-1, 1, 1).expand(-1, height, width).clone()
    for box in boxes(height, width):
        out[:, *box.at] = F.adaptive_avg_pool2d(power, (box.height, box.width))[:, 0]
    return out.log2()


def _transforms(x: Tensor) -> list[tuple[Box, Tensor, Tensor]]:
    return [(box, dct_matrix(box.height, x), dct_matrix(box.width, x)) for box in boxes(*x.shape[-2:])]
