"""LPIPS (Zhang et al. 2018) and DISTS (Ding et al. 2020): distances of what networks see that tell things apart.

The networks are AlexNet's and VGG-16's convolutions with torchvision's weights, which torch downloads once and keeps;
torchvision itself is not needed. What LPIPS and DISTS learned on top of them are files of torchmetrics.
"""

from abc import ABC, abstractmethod
from functools import cache
from importlib.resources import as_file, files
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.errors import ImageError, ModelError

Network = Literal["alex", "vgg"]
WEIGHTS: dict[Network, str] = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
# Layers whose outputs are compared: after the rectifiers that end each scale, of AlexNet after all five.
COMPARED: dict[Network, tuple[int, ...]] = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
# What AlexNet's strides need, rounded up.
SMALLEST_SIDE = 32
# Mean and deviation of ImageNet's colours in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Perceptual(nn.Module, ABC):
    """A frozen distance of images (B, 3, H, W) in [-1, 1]: `forward` -> (B,), with a gradient of the images.

    In float32 whatever is around it: the variances of DISTS do not survive bfloat16.
    """

    def __init__(self, network: Network, layers: nn.Sequential, shift: tuple[float, ...], scale: tuple[float, ...]):
        super().__init__()
        self.layers, self.compared = layers, COMPARED[network]
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).view(3, 1, 1))
        self.requires_grad_(False)

    def features(self, image: Tensor) -> list[Tensor]:
        """What is compared of images in [-1, 1], scale by scale, (B, C, h, w) each."""
        h, seen = (image - self.shift) / self.scale, []
        for number, layer in enumerate(self.layers):
            h = layer(h)
            if number in self.compared:
                seen.append(h)
        return seen

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        if min(image.shape[-2:]) < SMALLEST_SIDE:
            raise ImageError(
                f"LPIPS and DISTS need sides of at least {SMALLEST_SIDE} px, got {image.shape[-1]} x {image.shape[-2]}"
            )
        with torch.autocast(image.device.type, enabled=False):
            return self.compare(image.float(), reference.float())

    @abstractmethod
    def compare(self, image: Tensor, reference: Tensor) -> Tensor:
        """The distance of float32 images of at least `SMALLEST_SIDE`, (B,)."""


class Lpips(Perceptual):
    """LPIPS, version 0.1: squared differences of features of unit length, channels weighted, mean over places, summed.

    linear: the weights of each scale's channels, (C,) each.
    """

    def __init__(self, network: Network, layers: nn.Sequential, linear: list[Tensor]):
        # The published shift and scale are these to three digits, of pictures in [-1, 1].
        super().__init__(network, layers, (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
        self.linear = nn.ParameterList(linear).requires_grad_(False)

    def compare(self, image: Tensor, reference: Tensor) -> Tensor:
        distance = image.new_zeros(len(image))
        for a, b, weight in zip(self.features(image), self.features(reference), self.linear, strict=True):
            distance = distance + F.conv2d((_unit(a) - _unit(b)).square(), weight.view(1, -1, 1, 1)).mean((1, 2, 3))
        return distance


class Dists(Perceptual):
    """DISTS: similarity of means (texture) and covariances (structure) of the picture's and features' channels.

    alpha, beta: weights of the two, (3 + features,) each.
    """

    def __init__(self, layers: nn.Sequential, alpha: Tensor, beta: Tensor):
        shift, scale = (2 * m - 1 for m in MEAN), (2 * d for d in DEVIATION)
        # Pooled without aliasing.
        smooth = (L2Pooling() if isinstance(layer, nn.MaxPool2d) else layer for layer in layers)
        super().__init__("vgg", nn.Sequential(*smooth), tuple(shift), tuple(scale))
        total = alpha.sum() + beta.sum()
        self.alpha: Tensor
        self.beta: Tensor
        self.register_buffer("alpha", alpha / total)
        self.register_buffer("beta", beta / total)

    def compare(self, image: Tensor, reference: Tensor) -> Tensor:
        # Published of pictures in [0, 1], the first of what is compared.
        pairs = zip(
            [(image + 1) / 2, *self.features(image)], [(reference + 1) / 2, *self.features(reference)], strict=True
        )
        texture, structure = [], []
        for a, b in pairs:
            (mean_a, rest_a), (mean_b, rest_b) = _centred(a), _centred(b)
            covariance = (rest_a * rest_b).mean((2, 3))
            variances = rest_a.square().mean((2, 3)) + rest_b.square().mean((2, 3))
            means = mean_a.square() + mean_b.square()
            texture.append((2 * (mean_a * mean_b) + 1e-6) / (means + 1e-6))
            structure.append((2 * covariance + 1e-6) / (variances + 1e-6))
        return 1 - torch.cat(texture, 1) @ self.alpha - torch.cat(structure, 1) @ self.beta


class L2Pooling(nn.Module):
    """Halves a map: the root of a Hann window's mean of squares (Henaff and Simoncelli 2016)."""

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(5, periodic=False)[1:-1]
        self.window: Tensor
        self.register_buffer("window", torch.outer(window, window) / window.sum() ** 2)

    def forward(self, h: Tensor) -> Tensor:
        channels = h.shape[1]
        window = self.window.expand(channels, 1, -1, -1)
        return (F.conv2d(h.square(), window, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


@cache
def load_lpips(network: Network, device: torch.device) -> Lpips:
    """LPIPS with one of its networks. Raises ModelError where weights cannot be had."""
    learned = _learned(f"lpips_models/{network}.pth")
    linear = [learned[f"lin{scale}.model.1.weight"].flatten() for scale in range(len(COMPARED[network]))]
    return Lpips(network, _layers(network), linear).eval().to(device)


@cache
def load_dists(device: torch.device) -> Dists:
    """DISTS. Raises ModelError where weights cannot be had."""
    learned = _learned("dists_models/weights.pt")
    return Dists(_layers("vgg"), learned["alpha"].flatten(), learned["beta"].flatten()).eval().to(device)


def untrained(network: Network) -> nn.Sequential:
    """The layers of a network's features, numbered as torchvision's."""
    if network == "alex":
        return nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
    layers: list[nn.Module] = []
    width = 3
    for wider, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
            width = wider
    return nn.Sequential(*layers)


def _layers(network: Network) -> nn.Sequential:
    url = WEIGHTS[network]
    try:
        state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        layers = untrained(network)
        # The rest of the file classifies.
        layers.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"the weights {url} cannot be had ({reason}); where there is no network, put the file into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from error
    return layers


def _learned(name: str) -> dict[str, Tensor]:
    """A file of weights that torchmetrics brings."""
    try:
        with as_file(files("torchmetrics.functional.image") / name) as path:
            state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (ImportError, OSError) as error:
        raise ModelError(
            f"LPIPS and DISTS need torchmetrics, 1.8 or later: pip install 'codling[eval]' ({error})"
        ) from error
    return state


def _unit(h: Tensor) -> Tensor:
    # Within the root, for the gradient where nothing is seen.
    return h / (h.square().sum(1, keepdim=True) + 1e-8).sqrt()


def _centred(h: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, h, w) -> their means (B, C), and what is left of them."""
    mean = h.mean((2, 3), keepdim=True)
    return mean.flatten(1), h - mean
