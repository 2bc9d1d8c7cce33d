"""The Wiener filter: the exact denoiser of Gaussian pictures with a given radial power spectrum."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codling.models.activity import from_places, place_means, spread, to_places
from codling.nn.spectral import from_spectrum, radius, to_spectrum

# The lowest frequency that knots resolve, in cycles a pixel: one half wave over 2048 px.
LOWEST = 1 / 4096
# Of the interval in which `noise_of` looks: to 1e-6.
HALVINGS = 20


@dataclass(frozen=True)
class WienerConfig:
    """knots: how many radii the spectrum is given at. tile, overlap: see `codecs.tiling`, in pixels."""

    knots: int = 64
    tile: int = 1024
    overlap: int = 128

    @property
    def grid(self) -> int:
        """Picture sides are padded to multiples of this many pixels: none are."""
        return 1


class WienerFilter(nn.Module):
    """Posterior mean of a picture whose DCT coefficients are independent Gaussians of known power.

    `log_power` (3, knots): natural logarithm of the power of each colour component, at radii evenly spaced in
    log(radius + LOWEST); between knots it is interpolated.
    """

    def __init__(self, config: WienerConfig):
        super().__init__()
        self.config = config
        self.log_power: Tensor
        self.register_buffer("log_power", torch.zeros(3, config.knots))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Estimate of x_1 from states x = (1 - noise) x_1 + noise n (B, 3, H, W), noise fractions (B,)."""
        s = noise.view(-1, 1, 1, 1)
        height, width = x.shape[-2:]
        power = self.power(height, width)
        gain = (1 - s) * power / ((1 - s).square() * power + s.square())
        return from_spectrum(to_spectrum(x) * gain)

    def hide(self, x: Tensor, noise: Tensor, least: Tensor) -> Tensor:
        """States without the frequencies whose expected ratio of power to noise is below `least` (B,)."""
        s = noise.view(-1, 1, 1, 1)
        height, width = x.shape[-2:]
        ratio = self.power(height, width) * ((1 - s) / s).square()
        return from_spectrum(to_spectrum(x) * (ratio >= least.view(-1, 1, 1, 1)))

    def hide_places(self, x: Tensor, noise: Tensor, least: Tensor, octaves: Tensor, slope: Tensor) -> Tensor:
        """As `hide`, by frequency and place, where the activity of cells is known.

        octaves: (B, rows, columns), of cells that the picture is evenly cut into. slope: (B,), octaves by which power
        is thought to rise with an octave of activity.
        """
        s = noise.view(-1, 1, 1, 1)
        height, width = x.shape[-2:]
        power = place_means(self.power(height, width))
        rise = 2 ** (slope.view(-1, 1, 1, 1) * spread(octaves, height, width)[:, None])
        keep = power * rise * ((1 - s) / s).square() >= least.view(-1, 1, 1, 1)
        return from_spectrum(from_places(to_places(to_spectrum(x)) * keep))

    def power(self, height: int, width: int) -> Tensor:
        """Expected square of every coefficient, (3, H, W)."""
        place = knot_place(radius(height, width, self.log_power), self.config.knots)
        below = place.long().clamp(max=self.config.knots - 2)
        return torch.lerp(self.log_power[:, below], self.log_power[:, below + 1], place - below).exp()

    def error(self, noise: Tensor) -> Tensor:
        """Expected squared error a pixel and colour of the estimate at noise fractions (B,), for a 256 px square."""
        return _mean_error(self.power(256, 256), noise)

    @torch.no_grad()
    def noise_of(self, errors: Tensor) -> Tensor:
        """The inverse of `error`: noise fractions (B,), from .001 to .999, at which it expects such errors (B,)."""
        power = self.power(256, 256)
        low, high = torch.full_like(errors, 1e-3), torch.full_like(errors, 1 - 1e-3)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = _mean_error(power, middle) < errors
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low


def _mean_error(power: Tensor, noise: Tensor) -> Tensor:
    """Of posterior means of Gaussians of power (3, H, W) at noise fractions (B,): (B,)."""
    s = noise.view(-1, 1, 1, 1)
    return (power * s.square() / ((1 - s).square() * power + s.square())).mean((1, 2, 3))


def knot_place(radii: Tensor, knots: int) -> Tensor:
    """Where radii in cycles a pixel lie among the knots, 0 to knots - 1, as a real number."""
    low, high = (torch.tensor(edge + LOWEST).log() for edge in (0.0, 0.5**0.5))
    return (((radii + LOWEST).log() - low) / (high - low)).clamp(0, 1) * (knots - 1)


def fit_spectrum(images: list[Tensor], knots: int) -> Tensor:
    """`log_power` from images (3, H, W) in [-1, 1]: the mean square of the coefficients nearest to each knot."""
    total, count = torch.zeros(3, knots, dtype=torch.float64), torch.zeros(knots, dtype=torch.float64)
    for image in images:
        squares = to_spectrum(image[None])[0].double().square().flatten(1)
        height, width = image.shape[-2:]
        place = knot_place(radius(height, width, image), knots).flatten()
        below = place.long().clamp(max=knots - 2)
        share = (place - below).double()
        for index, weight in ((below, 1 - share), (below + 1, share)):
            total.index_add_(1, index, squares * weight)
            count.index_add_(0, index, weight)
    known = count > 1e-9
    log_power = torch.empty(3, knots, dtype=torch.float64)
    log_power[:, known] = (total[:, known] / count[known] + 1e-10).log()
    # Knots between the frequencies of the pictures take the value of the next lower one that was seen.
    last = torch.cummax(torch.where(known, torch.arange(knots), -1), 0).values
    return log_power[:, last].float()
