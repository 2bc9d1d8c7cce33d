"""Feature alignment (REPA, Yu et al. 2025): features of a frozen teacher that networks under training learn to predict.

A teacher is named in the configuration:

    none              no alignment
    dinov2_vitb14     DINOv2 (Oquab et al. 2024) through torch hub; also _vits14, _vitl14, _vitg14
    timm/NAME         any backbone of the package timm
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.configuration import suggest
from codling.errors import ConfigError

DINOV2 = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14")
DINOV2_WEIGHTS = "https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth"
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROJECTION_WIDTH = 2048


class Teacher(Protocol):
    """A frozen network. width: channels of its features."""

    width: int

    def features(self, image: Tensor, *, rows: int, columns: int) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> features (B, width, rows, columns), without gradient."""
        ...


class Projection(nn.Module):
    """Features (B, width, h, w) -> the teacher's channels: three 1x1 layers, as in REPA."""

    def __init__(self, width: int, teacher_width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, PROJECTION_WIDTH, 1), nn.SiLU(),
            nn.Conv2d(PROJECTION_WIDTH, PROJECTION_WIDTH, 1), nn.SiLU(),
            nn.Conv2d(PROJECTION_WIDTH, teacher_width, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layers(features)
        return out


def misalignment(projected: Tensor, target: Tensor) -> Tensor:
    """1 - cosine over channels of (B, C, h, w), mean over places, (B,): 0 where they point the same way, at most 2."""
    return 1 - F.cosine_similarity(projected.float(), target.float(), dim=1).mean((1, 2))


class BackboneTeacher:
    """Patch features of a backbone whose `forward_features` takes pictures normalised as in its own training."""

    def __init__(
        self,
        network: nn.Module,
        *,
        width: int,
        patch: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        deviation: tuple[float, ...] = IMAGENET_DEVIATION,
    ):
        self.network: Any = network.eval().requires_grad_(False)
        self.width, self.patch, self.mean, self.deviation = width, patch, mean, deviation

    @torch.no_grad()
    def features(self, image: Tensor, *, rows: int, columns: int) -> Tensor:
        """One patch a place, for which the image is resized; of coarser backbones, interpolated."""
        mean, deviation = (image.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.deviation))
        size = (rows * self.patch, columns * self.patch)
        resized = F.interpolate((image + 1) / 2, size, mode="bicubic", antialias=True, align_corners=False)
        grid = self._grid(self.network.forward_features((resized - mean) / deviation), rows, columns)
        if grid.shape[-2:] != (rows, columns):
            grid = F.interpolate(grid.float(), (rows, columns), mode="bilinear", align_corners=False)
        return grid

    def _grid(self, out: Any, rows: int, columns: int) -> Tensor:
        """From what backbones return: a dictionary (DINOv2), tokens after prefix tokens (ViT), or maps."""
        if isinstance(out, dict):
            out = out["x_norm_patchtokens"]
        if out.ndim == 3:
            grid: Tensor = out[:, out.shape[1] - rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
            return grid
        return out if out.shape[1] == self.width else out.permute(0, 3, 1, 2)


def load_teacher(name: str, *, device: torch.device) -> Teacher | None:
    """The teacher of that name, None for "none". Raises ConfigError if there is none, or it cannot be had here."""
    if name == "none":
        return None
    if name in DINOV2:
        return _dinov2(name, device)
    if name.startswith("timm/"):
        return _timm(name.removeprefix("timm/"), device)
    raise ConfigError(f"training: unknown teacher {name!r}{suggest(name, ('none', *DINOV2, 'timm/NAME'))}")


def _dinov2(name: str, device: torch.device) -> Teacher:
    try:
        # The architecture without weights, then the weights by themselves: the hub's own code would unpickle them.
        network = torch.hub.load("facebookresearch/dinov2", name, pretrained=False, trust_repo=True, verbose=False)
        url = DINOV2_WEIGHTS.format(name=name)
        weights = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"training: cannot get the teacher {name} through torch hub ({error}). It needs the network once; set "
            "teacher=none to train without one"
        ) from error
    network.load_state_dict(weights)
    return BackboneTeacher(network.to(device), width=int(network.embed_dim), patch=int(network.patch_size))


def _timm(name: str, device: torch.device) -> Teacher:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"training: the teacher timm/{name} needs the package timm, which needs torchvision: "
            f"pip install 'codling[timm]' ({error})"
        ) from error
    # Only transformers of fixed patches take a size of picture; the others take any by themselves.
    patches = name.startswith(("vit_", "deit", "eva", "beit"))
    try:
        network = timm.create_model(
            name, pretrained=True, num_classes=0, **({"dynamic_img_size": True} if patches else {})
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"training: timm cannot give the teacher {name} ({error}); see timm.list_models()") from error
    patch = int(network.patch_embed.patch_size[0]) if patches else 16
    described = network.pretrained_cfg
    return BackboneTeacher(
        network.to(device),
        width=int(network.num_features),
        patch=patch,
        mean=tuple(described["mean"]),
        deviation=tuple(described["std"]),
    )
