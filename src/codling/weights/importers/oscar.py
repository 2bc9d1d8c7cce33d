"""Importer for the published OSCAR checkpoint (`oscar.pkl`) and the Stable Diffusion 2.1 that it was trained on.

The checkpoint holds the hyper-encoders, the prompt, three low-rank adapters of the UNet (its way down, its way up, the
middle) and the UNet's first convolution. The rest is Stable Diffusion's. Everything is merged into one model of ours,
so that a model's id covers all of it. Every published tensor is consumed and every one of ours is filled, or the import
fails naming the difference.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from codling.errors import ModelError
from codling.models.hyper_encoder import HyperEncoderConfig
from codling.models.oscar_stable_diffusion import LevelConfig, OscarStableDiffusion, OscarStableDiffusionConfig
from codling.nn.uninitialised import uninitialised
from codling.weights.importers.published import SHOWN, check_fit, read_tensors, renamed
from codling.weights.importers.stable_diffusion import Pipeline, read_pipeline

# Of the published rates, ascending; the checkpoint does not hold them.
TIMESTEPS = (500, 400, 310, 280, 210, 190, 170, 150)
ADAPTERS = ("encoder", "decoder", "others")
# What `peft` scales adapters by is this over the rank; the published code leaves its default.
ALPHA = 8
LAYOUT = frozenset(
    {
        "hyper_encoders",
        "embeddings",
        "rank_unet",
        "state_dict_unet",
        *(f"unet_lora_{name}_modules" for name in ADAPTERS),
    }
)
# Of the published quantiser, needed to train it only.
TRAINING_ONLY = ("quantizer._codebook.initted", "quantizer._codebook.cluster_size", "quantizer._codebook.embed_avg")


def import_oscar(weights: Path, stable_diffusion: str) -> OscarStableDiffusion:
    """A published checkpoint and a Stable Diffusion 2.1, by directory or hub name -> our model, adapters merged."""
    checkpoint = read_checkpoint(weights)
    return merge_adapters(model_from_published(checkpoint, load_stable_diffusion(stable_diffusion)))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The published dictionary. Raises ModelError where it is not one; nothing is unpickled but tensors and lists."""
    loaded = read_tensors(path)
    found = set(loaded) if isinstance(loaded, dict) else set()
    if found != LAYOUT:
        raise ModelError(
            f"{path} is not a published OSCAR checkpoint: it lacks {sorted(LAYOUT - found) or 'nothing'} and has "
            f"{sorted(map(str, found - LAYOUT)) or 'nothing'} beside; wanted the file oscar.pkl as its authors saved it"
        )
    return dict(loaded)


def load_stable_diffusion(name: str) -> Pipeline:
    """What the checkpoint was trained on, by directory or hub name. Raises ModelError if it is another model."""
    pipeline = read_pipeline(name)
    if pipeline.predicts != "v_prediction":
        raise ModelError(
            f"{name} predicts {pipeline.predicts}; wanted v_prediction, as in Stable Diffusion 2.1 (and not its -base "
            "model)"
        )
    return pipeline


def model_from_published(checkpoint: Mapping[str, Any], base: Pipeline) -> OscarStableDiffusion:
    """The model with its adapters still apart, as published. Raises ModelError naming tensors that do not fit."""
    groups = hyper_encoder_states(checkpoint["hyper_encoders"])
    config = OscarStableDiffusionConfig(
        levels=tuple(
            LevelConfig(hyper_encoder_config(state), step) for state, step in zip(groups, TIMESTEPS, strict=True)
        ),
        unet=base.unet_config,
        autoencoder=base.autoencoder_config,
        prompt_tokens=len(checkpoint["embeddings"]),
        beta_start=base.schedule.beta_start,
        beta_end=base.schedule.beta_end,
        train_timesteps=base.schedule.train_timesteps,
    )
    with uninitialised():
        model = OscarStableDiffusion(config)
    model.unet, model.autoencoder = base.unet, base.autoencoder
    add_adapters(model.unet, checkpoint)
    own = {f"hyper_encoders.{n}.{name}": value for n, state in enumerate(groups) for name, value in state.items()}
    given = own | {"prompt": checkpoint["embeddings"].detach()}
    given |= {f"unet.{name}": value for name, value in checkpoint["state_dict_unet"].items()}
    wanted = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("hyper_encoders.", "prompt", "unet.conv_in.")) or "lora_" in name
    }
    check_fit(given, wanted, question="checkpoint and Stable Diffusion do not make a model; are both whole?")
    model.load_state_dict({name: value.float() for name, value in given.items()}, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def add_adapters(unet: Any, checkpoint: Mapping[str, Any]) -> None:
    """The three empty adapters, at the layers and of the rank that the checkpoint names."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ModelError(
            "importing OSCAR needs the package `peft`, for its adapters: pip install 'codling[diffusers]'"
        ) from error
    rank, layers = checkpoint["rank_unet"], dict(unet.named_modules())
    for name, value in checkpoint["state_dict_unet"].items():
        found = value.shape[1] if ".lora_B." in name else value.shape[0]
        if ".lora_" in name and found != rank:
            raise ModelError(f"the checkpoint says its adapters have rank {rank}, but {name} has {found}")
    for adapter in ADAPTERS:
        targets = checkpoint[f"unet_lora_{adapter}_modules"]
        if absent := [name for name in targets if name not in layers]:
            raise ModelError(f"the {adapter} adapter changes layers that this UNet has not: {absent[:5]}")
        lora = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=list(targets), init_lora_weights=False)
        with warnings.catch_warnings():
            # peft warns of a second adapter, which is as intended: each changes other layers.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            unet.add_adapter(lora, adapter_name=f"default_{adapter}")
    unet.set_adapter([f"default_{adapter}" for adapter in ADAPTERS])


def merge_adapters(model: OscarStableDiffusion) -> OscarStableDiffusion:
    """The model, changed in place: its adapters are added into the UNet's weights, for the same output in less time."""
    model.unet.fuse_lora(adapter_names=[f"default_{adapter}" for adapter in ADAPTERS])
    model.unet.unload_lora()
    return model


def hyper_encoder_states(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Published `hyper_encoders` -> our state dict of each. Raises ModelError unless there is one for every rate."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        parts = re.fullmatch(r"([0-9]+)\.(.+)", name)
        if parts is None:
            raise ModelError(
                f"the checkpoint's hyper-encoders have a tensor {name!r}; wanted names that begin with the number of "
                "the rate, such as 0.backbone.0.weight: is it as its authors saved it?"
            )
        number, rest = parts.groups()
        group = groups.setdefault(number, {})
        if rest not in TRAINING_ONLY:
            group[rest] = value[0] if rest == "quantizer._codebook.embed" else value
    wanted = [str(number) for number in range(len(TIMESTEPS))]
    if set(groups) != set(wanted):
        raise ModelError(
            f"the checkpoint has {len(groups)} hyper-encoders; wanted {len(wanted)}, one a rate, with the numbers "
            f"{wanted[0]} to {wanted[-1]}, got {', '.join(sorted(groups)[:SHOWN]) or 'none'}"
        )
    return [renamed(groups[number], rename) for number in wanted]


NAMES = [
    ("backbone.", "encoder."),
    ("proj.", "decoder."),
    ("quantizer._codebook.embed", "codebook"),
    ("quantizer.project_in.", "project_in."),
    ("quantizer.project_out.", "project_out."),
]


def rename(name: str) -> str:
    """Our name of a hyper-encoder's published tensor."""
    for old, new in NAMES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    return re.sub(r"(\.\d)\.conv\.", r"\1.layers.", name.replace(".conv_a.", ".value.").replace(".conv_b.", ".gate."))


def hyper_encoder_config(state: Mapping[str, Tensor]) -> HyperEncoderConfig:
    """The settings of a hyper-encoder, which the checkpoint does not hold, from its shapes."""
    try:
        halvings = sum(state[f"encoder.{place}.weight"].shape[-1] > 1 for place in (0, 4, 9))
        width, channels = state["encoder.0.weight"].shape[:2]
        size, codebook_width = state["codebook"].shape
        features = state["encoder.13.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ModelError(f"the checkpoint's hyper-encoders are not PerCo's: {error} is missing or misshapen") from error
    return HyperEncoderConfig(
        stride=2**halvings,
        codebook_size=size,
        channels=channels,
        width=width,
        feature_width=features,
        codebook_width=codebook_width,
    )
