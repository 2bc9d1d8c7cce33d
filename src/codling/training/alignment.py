"""Feature alignment (REPA, Yu et al. 2025): features of a frozen teacher that networks under training learn to predict.

A teacher is named in the configuration:

    none              no alignment
    dinov2_vitb14     DINOv2 (Oquab et al. 2024) through torch hub; also _vits14, _vitl14, _vitg14
    timm/NAME         any backbone of the package timm
"""

from math import isqrt
from types import ModuleType
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
    """Features of a backbone whose `forward_features` takes pictures normalised as in its own training.

    width: of its features. patch: pixels a side that a place is given. size: height and width of the only pictures that
    it takes, None where it takes any.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        width: int,
        patch: int,
        size: tuple[int, int] | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        deviation: tuple[float, ...] = IMAGENET_DEVIATION,
    ):
        self.network: Any = network.eval().requires_grad_(False)
        self.width, self.patch, self.size, self.mean, self.deviation = width, patch, size, mean, deviation

    @torch.no_grad()
    def features(self, image: Tensor, *, rows: int, columns: int) -> Tensor:
        """The image is resized to one patch a place, or to what the backbone takes; what it finds is interpolated."""
        mean, deviation = (image.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.deviation))
        size = self.size or (rows * self.patch, columns * self.patch)
        resized = F.interpolate((image + 1) / 2, size, mode="bicubic", antialias=True, align_corners=False)
        grid = self._grid(self.network.forward_features((resized - mean) / deviation), rows, columns)
        if grid.shape[-2:] != (rows, columns):
            grid = F.interpolate(grid.float(), (rows, columns), mode="bilinear", align_corners=False)
        return grid

    def _grid(self, out: Any, rows: int, columns: int) -> Tensor:
        """From what backbones return: a dictionary (DINOv2), tokens after prefix tokens (ViT), or maps.

        Raises ConfigError if it is none of these.
        """
        if isinstance(out, dict):
            out = out["x_norm_patchtokens"]
        if self.size is not None and isinstance(out, Tensor) and out.ndim == 3:
            # Prefix tokens are few, so the tokens of the largest square that there is are those of the picture.
            rows = columns = isqrt(out.shape[1])
        if (
            not isinstance(out, Tensor)
            or out.ndim not in (3, 4)
            or (out.ndim == 3 and out.shape[1] < max(2, rows * columns))
        ):
            found = f"one of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise ConfigError(
                f"training: wanted a map of features from the teacher, got {found} for {rows} x {columns} places; "
                "choose another backbone"
            )
        if out.ndim == 3:
            return out[:, out.shape[1] - rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
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
    try:
        network, any_size = _timm_network(timm, name)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"training: timm cannot give the teacher {name} ({error}); see timm.list_models()") from error
    described, stride = network.pretrained_cfg, network.feature_info[-1]["reduction"]
    fixed = not any_size and described.get("fixed_input_size", False)
    # Plain transformers have a place a patch; of backbones that get coarser, pictures keep their size.
    plain = any_size and network.patch_embed.patch_size[0] == stride
    return BackboneTeacher(
        network.to(device),
        width=int(network.num_features),
        patch=int(stride) if plain else 16,
        size=tuple(described["input_size"][1:]) if fixed else None,
        mean=tuple(described["mean"]),
        deviation=tuple(described["std"]),
    )


def _timm_network(timm: ModuleType, name: str) -> tuple[Any, bool]:
    """The backbone, and whether it is a transformer that was told to take pictures of any size."""
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True), True
    except TypeError:
        # One that does not know the word: it takes any size by itself, or just one.
        return timm.create_model(name, pretrained=True, num_classes=0), False
