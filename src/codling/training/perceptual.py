"""Distances between features of networks that others trained: LPIPS (Zhang et al. 2018), DISTS (Ding et al. 2020).

Through torchmetrics, as in the evaluation, with VGG-16; its weights are downloaded once. The networks are frozen and
work in float32, since the variances of DISTS do not survive bfloat16.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from codling.errors import ConfigError

# Distances of images (B, 3, H, W) in [-1, 1], restored first, a scalar: the mean over the batch.
Distance = Callable[[Tensor, Tensor], Tensor]
PERCEPTUAL = ("lpips", "dists", "dists_edges")
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def load_perceptual(names: Collection[str], *, device: torch.device) -> dict[str, Distance]:
    """The named distances of `PERCEPTUAL`. Raises ConfigError where a package or weights cannot be had.

    dists_edges: DISTS of the pictures' `edges` (published OSCAR has both).
    """
    distances: dict[str, Distance] = {}
    try:
        if "lpips" in names:
            distances["lpips"] = _lpips(device)
        if "dists" in names or "dists_edges" in names:
            dists = _dists(device)
            of_edges = {"dists": dists, "dists_edges": lambda a, b: dists(edges(a), edges(b))}
            distances |= {name: distance for name, distance in of_edges.items() if name in names}
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"training: weights.{' and weights.'.join(sorted(names))} need torchmetrics, torchvision and its VGG-16, "
            f"which it downloads once: pip install 'codling[eval]' torchvision ({reason}). Set them to 0 to train "
            "without"
        ) from error
    return distances


def edges(image: Tensor) -> Tensor:
    """Sobel gradients' magnitude of each colour of images (B, 3, H, W) in [-1, 1], again in [-1, 1]: -1 where flat."""
    kernel = image.new_tensor(SOBEL) / 8
    pair = torch.stack([kernel, kernel.T])[:, None].repeat(3, 1, 1, 1)
    continued = F.pad(image, (1, 1, 1, 1), mode="replicate")
    across, down = F.conv2d(continued, pair, groups=3).unflatten(1, (3, 2)).unbind(2)
    # The largest magnitude that a picture in [-1, 1] can have is sqrt 2; the small number keeps the gradient finite.
    magnitude = (across.square() + down.square() + 1e-8).sqrt()
    return 2**0.5 * magnitude - 1


def _lpips(device: torch.device) -> Distance:
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="vgg").to(device)

    def distance(restored: Tensor, image: Tensor) -> Tensor:
        with torch.autocast(restored.device.type, enabled=False):
            return network(restored.float(), image.float()).mean()

    return distance


def _dists(device: torch.device) -> Distance:
    from torchmetrics.functional.image.dists import DISTSNetwork

    network = DISTSNetwork().to(device).requires_grad_(False)

    def distance(restored: Tensor, image: Tensor) -> Tensor:
        with torch.autocast(restored.device.type, enabled=False):
            return network((restored.float() + 1) / 2, (image.float() + 1) / 2, require_grad=True).mean()

    return distance
