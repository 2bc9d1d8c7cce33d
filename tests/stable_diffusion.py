"""A Stable Diffusion of the smallest size, with random weights, and as a pipeline on disk."""

import json
from pathlib import Path

import torch

from codling.models.stable_diffusion import StableDiffusion, StableDiffusionConfig
from codling.models.stable_diffusion_parts import AutoencoderConfig, UNetConfig

# No more than a prompt's beginning, its end, and some tokens to tell them from.
VOCABULARY = ("a", "<|startoftext|>", "<|endoftext|>", "a</w>")
TOKENS, WIDTH = 5, 8


def tiny_config(predicts: str = "epsilon") -> StableDiffusionConfig:
    unet = UNetConfig(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(4, 4),
    )  # fmt: skip
    autoencoder = AutoencoderConfig(block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1)
    return StableDiffusionConfig(predicts, unet, autoencoder, prompt_tokens=TOKENS)


def tiny_model(predicts: str = "epsilon") -> StableDiffusion:
    torch.manual_seed(0)
    return StableDiffusion(tiny_config(predicts)).requires_grad_(False)


def write_scheduler(directory: Path, *, predicts: str = "epsilon", schedule: str = "scaled_linear") -> None:
    """As published pipelines have it: of a sampler that DiffC does not use."""
    from diffusers import PNDMScheduler

    PNDMScheduler(
        beta_schedule=schedule, beta_start=0.00085, beta_end=0.012, prediction_type=predicts, skip_prk_steps=True
    ).save_pretrained(directory / "scheduler")


def write_pipeline(model: StableDiffusion, directory: Path) -> None:
    """In `diffusers` layout, with a text encoder and a tokenizer as small."""
    from transformers import CLIPTextConfig, CLIPTextModel

    model.unet.save_pretrained(directory / "unet")
    model.autoencoder.save_pretrained(directory / "vae")
    write_scheduler(directory, predicts=model.config.predicts)
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(VOCABULARY)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"pad_token": "a"}))
    torch.manual_seed(1)
    settings = CLIPTextConfig(
        vocab_size=len(VOCABULARY), hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModel(settings).save_pretrained(directory / "text_encoder")
