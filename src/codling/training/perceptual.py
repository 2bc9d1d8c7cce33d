"""Terms that compare restored pictures by what networks see of them: `codling.perceptual`, and DISTS of edges."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from codling.errors import ConfigError, ModelError
from codling.perceptual import load_dists, load_lpips

# Distances of images (B, 3, H, W) in [-1, 1], restored first, a scalar: the mean over the batch.
Distance = Callable[[Tensor, Tensor], Tensor]
PERCEPTUAL = ("lpips", "lpips_alex", "dists", "dists_edges")
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def load_perceptual(names: Collection[str], *, device: torch.device) -> dict[str, Distance]:
    """The named distances of `PERCEPTUAL`. Raises ConfigError where a package or weights cannot be had.

    lpips: with VGG-16; lpips_alex: with AlexNet, a twentieth of the operations. dists_edges: DISTS of the `edges`
    (published OSCAR has both).
    """
    found: dict[str, Distance] = {}
    missing: dict[str, list[str]] = {}
    for name in sorted(names, key=PERCEPTUAL.index):
        try:
            found[name] = _distance(name, device)
        except ModelError as error:
            missing.setdefault(str(error), []).append(f"weights.{name}")
    if missing:
        reasons = "; ".join(f"{' and '.join(terms)} cannot count: {reason}" for reason, terms in missing.items())
        raise ConfigError(f"training: {reasons}. Set them to 0 to train without")
    return found


def _distance(name: str, device: torch.device) -> Distance:
    if name.startswith("dists"):
        dists = load_dists(device)
        if name == "dists_edges":
            return lambda restored, image: dists(edges(restored), edges(image)).mean()
        return lambda restored, image: dists(restored, image).mean()
    lpips = load_lpips("alex" if name == "lpips_alex" else "vgg", device)
    return lambda restored, image: lpips(restored, image).mean()


def edges(image: Tensor) -> Tensor:
    """Sobel gradients' magnitude of each colour of images (B, 3, H, W) in [-1, 1], again in [-1, 1]: -1 where flat."""
    kernel = image.new_tensor(SOBEL) / 8
    pair = torch.stack([kernel, kernel.T])[:, None].repeat(3, 1, 1, 1)
    continued = F.pad(image, (1, 1, 1, 1), mode="replicate")
    across, down = F.conv2d(continued, pair, groups=3).unflatten(1, (3, 2)).unbind(2)
    # The largest magnitude that a picture in [-1, 1] can have is sqrt 2; the small number keeps the gradient finite.
    magnitude = (across.square() + down.square() + 1e-8).sqrt()
    return 2**0.5 * magnitude - 1
