"""The Gaussian posterior of a step of variance-preserving diffusion (Ho et al. 2020, eq. 6 and 7).

Noise levels are fractions s of the flow: x_s = (1 - s) x + s n. Divided by the root of (1 - s)^2 + s^2 that is the
variance-preserving state sqrt(a) x + sqrt(1 - a) n with a = (1 - s)^2 / ((1 - s)^2 + s^2).
"""

from dataclasses import dataclass
from math import hypot, sqrt


@dataclass(frozen=True)
class Posterior:
    """q(z_s' | z_s, x) = N(gain x + carry z_s, variance) for a step from noise level s to s' < s."""

    gain: float
    carry: float
    variance: float


def posterior(noise: float, following: float) -> Posterior:
    """The posterior between two noise fractions, 1 > noise > following > 0."""
    a, after = signal_share(noise), signal_share(following)
    b, b_after = 1 - a, 1 - after
    beta = 1 - a / after
    return Posterior(sqrt(after) * beta / b, sqrt(a / after) * b_after / b, b_after / b * beta)


def signal_share(noise: float) -> float:
    """a, often written alpha-bar: the share of the signal in the variance-preserving state."""
    return (1 - noise) ** 2 / ((1 - noise) ** 2 + noise**2)


def flow_scale(noise: float) -> float:
    """What a variance-preserving state is multiplied with to lie on the flow."""
    return hypot(1 - noise, noise)
