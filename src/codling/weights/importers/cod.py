"""Importer for published CoD checkpoints (`CoD_pixel_vpred.pt` and the like, with their YAML configuration).

Every published tensor is consumed and every tensor of ours is filled, or the import fails naming the difference.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from codling.errors import ConfigError, ModelError
from codling.models.cod import CoD, CoDConfig
from codling.models.condition_codec import ConditionCodecConfig
from codling.models.dit import TransformerConfig
from codling.nn.uninitialised import uninitialised
from codling.weights.importers.published import check_fit, read_tensors, renamed

CLASSES = {"PixNerDiT": "nerf", "DDT": "ddt"}

# Keys of the published `init_args`, with the defaults of the published classes.
DEFAULTS = {
    "in_channels": 4,
    "num_groups": 12,
    "hidden_size": 1152,
    "hidden_size_x": 64,
    "nerf_mlpratio": 4,
    "num_blocks": 18,
    "num_cond_blocks": 4,
    "patch_size": 2,
    "ds": 32,
    "codebook_bits": 4,
    "up2x": False,
    "light": False,
}
# Parts of a training checkpoint that decoding does not need.
TRAINING_ONLY = ("diffusion_trainer.", "vae.", "conditioner.", "diffusion_sampler.", "ema_tracker.")
# Accepted and without effect on the network: the published classes take them and never use them.
UNUSED = {"learn_sigma", "deep_supervision", "weight_path", "load_ema"}


def config_from_published(init_args: Mapping[str, Any], *, latent: bool, sampling: Mapping[str, Any]) -> CoDConfig:
    """Our configuration for the published `denoiser.init_args` and the sampler's settings.

    Published `ds` counts from the doubled picture: the stride of the indices is `ds` with `up2x` and `ds / 2` without.
    """
    if unknown := set(init_args) - set(DEFAULTS) - UNUSED:
        raise ConfigError(f"published configuration has unknown keys {sorted(unknown)}; known are {sorted(DEFAULTS)}")
    args = {**DEFAULTS, **init_args}
    stride = args["ds"] if args["up2x"] else args["ds"] // 2
    # Full attention over a whole picture is what the published models do; 1024 keeps two 512 px training sizes.
    return CoDConfig(
        condition=ConditionCodecConfig(
            stride=stride,
            codebook_size=2 ** args["codebook_bits"],
            decoder_width=args["hidden_size"],
            decoder_blocks=3 if args["light"] else 4,
            stem_stride=2 if args["up2x"] else 1,
        ),
        transformer=TransformerConfig(
            head="ddt" if latent else "nerf",
            channels=args["in_channels"],
            patch=args["patch_size"],
            width=args["hidden_size"],
            heads=args["num_groups"],
            blocks=args["num_cond_blocks"],
            head_blocks=args["num_blocks"] - args["num_cond_blocks"],
            head_width=args["hidden_size_x"],
            head_mlp_ratio=args["nerf_mlpratio"],
        ),
        space="sd-vae" if latent else "pixel",
        guidance=float(sampling.get("guidance", 3.0)),
        guidance_interval=(
            float(sampling.get("guidance_interval_min", 0.1)),
            float(sampling.get("guidance_interval_max", 1.0)),
        ),
        last_step=float(sampling.get("last_step") or 0.04),
    )


def read_published_config(path: Path) -> CoDConfig:
    """Parse the published YAML. Raises ConfigError where it is not one."""
    import yaml

    try:
        model = yaml.safe_load(path.read_text())["model"]
        denoiser, sampler = model["denoiser"], model.get("diffusion_sampler", {}).get("init_args", {})
        name, init_args = denoiser["class_path"].rsplit(".", 1)[-1], denoiser["init_args"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not a published CoD configuration (no model.denoiser.init_args): {error}"
        ) from error
    if name not in CLASSES:
        raise ConfigError(f"{path} describes a {name}; this importer knows {', '.join(CLASSES)}")
    return config_from_published(init_args, latent=CLASSES[name] == "ddt", sampling=sampler)


def read_published_weights(path: Path) -> dict[str, Tensor]:
    """State dict of a published checkpoint: bare, or wrapped under `state_dict` or `module`; nothing is unpickled."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged: {error}") from error
    loaded = read_tensors(path)
    for wrapper in ("state_dict", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{path} holds no state dict of tensors")
    return loaded


def denoiser_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged denoiser's tensors, with the prefix removed.

    Training checkpoints carry `denoiser.`, `ema_denoiser.` and the training heads; released files one of them, or none.
    Raises ModelError on a tensor that is of none of these.
    """
    prefixed = [name for name in state if name.startswith(("ema_denoiser.", "denoiser."))]
    if not prefixed:
        return dict(state)
    if unknown := [name for name in state if name not in prefixed and not name.startswith(TRAINING_ONLY)]:
        raise ModelError(f"the checkpoint has tensors of unknown purpose, beside the denoiser: {sorted(unknown)[:5]}")
    prefix = "ema_denoiser." if any(name.startswith("ema_denoiser.") for name in prefixed) else "denoiser."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rename(name: str, config: CoDConfig) -> str:
    """Our name of a published tensor."""
    assert config.transformer is not None
    trunk = config.transformer.blocks
    if match := re.fullmatch(r"y_embedder\.(encoder|decoder)\.(.*)", name):
        part, rest = match.groups()
        rest = _encoder_name(rest, config.condition) if part == "encoder" else _decoder_name(rest)
        return f"condition_codec.{part}.{rest}"
    if name == "y_embedder.bottleneck.embedding.weight":
        return "condition_codec.quantiser.embedding"
    if match := re.fullmatch(r"blocks\.(\d+)\.(.*)", name):
        index, rest = int(match[1]), match[2]
        place = f"blocks.{index}" if index < trunk else f"head.blocks.{index - trunk}"
        for old, new in BLOCK_NAMES:
            rest = rest.replace(old, new)
        return f"transformer.{place}.{rest}"
    names = TOP_NAMES_NERF if config.transformer.head == "nerf" else TOP_NAMES_DDT
    for old, new in names:
        if name.startswith(old):
            return "transformer." + new + name.removeprefix(old)
    return name


BLOCK_NAMES = [
    ("attn.", "attention."),
    ("mlp.w1.", "mlp.gate."),
    ("mlp.w3.", "mlp.up."),
    ("mlp.w2.", "mlp.down."),
    ("adaLN_modulation.0.", "modulation."),
    ("param_generator1.0.", "weights."),
]
SHARED_TOP_NAMES = [("s_embedder.proj.", "embed."), ("t_embedder.", "time.")]
TOP_NAMES_NERF = [
    *SHARED_TOP_NAMES,
    ("x_embedder.embedder.0.", "head.embed.proj."),
    ("y_embedder_x.", "head.condition."),
    ("final_layer.norm.", "head.norm."),
    ("final_layer.linear.", "head.out."),
]
TOP_NAMES_DDT = [
    *SHARED_TOP_NAMES,
    ("x_embedder.proj.", "head.embed."),
    ("final_layer.adaLN_modulation.0.", "head.modulation."),
    ("final_layer.linear.", "head.out."),
]


def _encoder_name(rest: str, config: ConditionCodecConfig) -> str:
    """Published down blocks and the middle block are one flat sequence of ours."""
    if match := re.fullmatch(r"(down_block_(\d)|mid_block)\.(\d+)\.(.*)", rest):
        level = 5 if match[2] is None else int(match[2])
        # Each of the first four published levels has 2 residual blocks and a halving where `ds` asks for one.
        ds = 2 * config.stride // config.stem_stride
        sizes = [2 + int(ds >= needed) for needed in (0, 8, 16, 32)] + [10 if ds > 32 else 4]
        return f"layers.{sum(sizes[:level]) + int(match[3])}.{_block_name(match[4])}"
    return _head_name(rest)


def _decoder_name(rest: str) -> str:
    if match := re.fullmatch(r"block\.(\d+)\.(.*)", rest):
        return f"layers.{match[1]}.{_block_name(match[2])}"
    if match := re.fullmatch(r"ada\.(.*)", rest):
        return f"resize.{_block_name(match[1])}"
    # Strides 4 have a sequence of convolutions at the end, the others one convolution.
    if match := re.fullmatch(r"conv_out\.(\d+)\.(.*)", rest):
        return f"head.{match[1]}.{_block_name(match[2])}"
    return _head_name(rest).replace("head.", "head.0.")


def _block_name(rest: str) -> str:
    return rest.replace("nin_shortcut.", "shortcut.").replace("proj_out.", "out.")


def _head_name(rest: str) -> str:
    return rest.replace("conv_in.", "stem.").replace("norm_out.", "norm.").replace("conv_out.", "head.")


def model_from_published(config: CoDConfig, state: Mapping[str, Tensor]) -> CoD:
    """Fill a model of ours with the published tensors; raises ModelError naming every tensor left over or missing."""
    ours = renamed(denoiser_tensors(state), lambda name: rename(name, config))
    with uninitialised():
        model = CoD(config)
    question = "checkpoint and configuration do not match; is it the YAML of this file?"
    check_fit(ours, model.state_dict(), question=question)
    model.load_state_dict({name: value.float() for name, value in ours.items()}, assign=True)
    return model.eval()


def import_cod(config_path: Path, weights_path: Path) -> CoD:
    """A published CoD checkpoint and its YAML -> our model."""
    return model_from_published(read_published_config(config_path), read_published_weights(weights_path))
