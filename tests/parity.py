"""Check golden files of the published implementations against ours.

    python tests/parity.py GOLDEN.json ...

The kind of a file is the prefix of its name. Prints the worst relative error per array. Exit status: 0 if all arrays of
all files agree, 1 if one does not, 2 if a file is of a kind that is not implemented yet or cannot be read.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from codling.bitstream.bits import pack_bits, unpack_bits
from codling.bitstream.indices import index_bits
from codling.diffusion import published
from codling.diffusion.grid import uniform_grid
from codling.diffusion.guidance import guided
from codling.diffusion.samplers import sampler
from codling.models.rate_levels import Tokens
from codling.weights.importers import oscar as oscar_importer
from codling.weights.importers.cod import config_from_published, model_from_published
from tests.golden.fill import filled
from tests.golden.oscar_parts import published_checkpoint, write_stable_diffusion

TOLERANCE = 1e-4
SAMPLERS = {"adam2": "adams2", "euler": "euler"}
Comparison = tuple[str, np.ndarray, np.ndarray]


def cod(golden: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[Comparison]:
    """Encoder, quantiser, packed bytes, condition, null condition, velocity, and the trajectories of both samplers."""
    low, high = golden["guidance_interval"]
    sampling = {
        "guidance": golden["guidance"],
        "last_step": golden["last_step"],
        "guidance_interval_min": low,
        "guidance_interval_max": high,
    }
    config = config_from_published(golden["config"], latent=golden["latent"], sampling=sampling)
    state = {name: torch.from_numpy(filled(name, tuple(shape))) for name, shape in golden["parameters"].items()}
    model = model_from_published(config, state)
    image, noise = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["noise"])

    indices = model.condition_codec.encode(image)
    yield "indices", indices.numpy().reshape(arrays["indices"].shape), arrays["indices"]
    bits = index_bits(config.condition.codebook_size)
    packed = pack_bits(indices.numpy(), bits)
    yield "bitstream", np.frombuffer(packed, np.uint8), arrays["bitstream"]
    unpacked = unpack_bits(arrays["bitstream"].astype(np.uint8).tobytes(), indices.numel(), bits)
    yield "unpacked bitstream", unpacked.reshape(arrays["indices"].shape), arrays["indices"]

    condition = model.condition_codec.decode(indices)
    null = model.null_condition(height=image.shape[-2], width=image.shape[-1])
    yield "cond", condition.numpy(), arrays["cond"]
    yield "uncond", null.numpy(), arrays["uncond"]
    yield "v", model.velocity(noise, torch.from_numpy(arrays["t"]), condition).numpy(), arrays["v"]

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return model.velocity(x, t, condition)

    def unconditional(x: Tensor, t: Tensor) -> Tensor:
        return model.velocity(x, t, null)

    velocity = guided(conditional, unconditional, strength=config.guidance, interval=config.guidance_interval)
    for name in sorted(name for name in arrays if name.startswith("sample_")):
        _, published, steps = name.split("_")
        grid = uniform_grid(int(steps), last_step=config.last_step)
        yield name, sampler(SAMPLERS[published])(velocity, noise, grid).numpy(), arrays[name]


def diffc(golden: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[Comparison]:
    """Noise estimates, prior and posterior of each step, the walk with the published draws, the probability flow."""
    config = config_from_published(golden["config"], latent=False, sampling={})
    # The file does not list its parameters: the network is that of `cod_pixel`.
    parameters = json.loads((Path(__file__).parent / "golden" / "cod_pixel.json").read_text())["parameters"]
    state_dict = {name: torch.from_numpy(filled(name, tuple(shape))) for name, shape in parameters.items()}
    model = model_from_published(config, state_dict)
    # The image is given in [0, 1], and so it was to the condition codec; the state is that of [-1, 1].
    given, state = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["noise"])
    condition = model.condition_codec.decode(model.condition_codec.encode(given))
    image = 2 * given - 1
    null = model.null_condition(height=image.shape[-2], width=image.shape[-1])

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return model.velocity(x, t, condition)

    def unconditional(x: Tensor, t: Tensor) -> Tensor:
        return model.velocity(x, t, null)

    steps = [published.FIRST, *golden["timesteps"]]
    bits = []
    for number, (timestep, following) in enumerate(pairwise(steps)):
        q = published.step_posterior(timestep, following)
        noise = published.noise_estimate(conditional, state, timestep)
        prior_mean = q.gain * published.data_estimate(state, noise, timestep) + q.carry * state
        mean, deviation = q.gain * image + q.carry * state, q.variance**0.5
        yield f"step{number}_eps", noise.numpy(), arrays[f"step{number}_eps"]
        yield f"step{number}_p_mean", prior_mean.numpy(), arrays[f"step{number}_p_mean"]
        yield f"step{number}_p_std", np.array(deviation, np.float32), arrays[f"step{number}_p_std"]
        yield f"step{number}_q_mean", mean.numpy(), arrays[f"step{number}_q_mean"]
        bits.append(float(((mean - prior_mean) / deviation).square().sum()) / 2 / np.log(2))
        z = torch.from_numpy(arrays[f"step{number}_z"])
        yield f"step{number}_z", z.numpy(), arrays[f"step{number}_z"]
        state = mean + deviation * z
    yield "kl_bits", np.array(bits), np.array(golden["kl_bits"])
    yield "x_last", state.numpy(), arrays["x_last"]
    velocity = guided(conditional, unconditional, strength=golden["denoising_guidance"])
    times = [steps[-1], *(k for k in golden["denoising_timesteps"] if k < steps[-1])]
    yield "denoised", published.probability_flow(velocity, state, times).numpy(), arrays["denoised"]


def oscar(golden: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[Comparison]:
    """Latents; at every rate indices, rough latent, v and data estimate; where the file has them, images."""
    with tempfile.TemporaryDirectory() as directory:
        write_stable_diffusion(golden, Path(directory))
        base = oscar_importer.load_stable_diffusion(directory)
    model = oscar_importer.model_from_published(published_checkpoint(golden), base)
    image = torch.from_numpy(arrays["image"])
    posterior = model.autoencoder.encode(image).latent_dist
    yield "vae_mean", posterior.mean.numpy(), arrays["vae_mean"]
    yield "vae_logvar", posterior.logvar.numpy(), arrays["vae_logvar"]
    latent = model.latent(image)
    yield "latents", latent.numpy(), arrays["latents"]
    for level in range(len(model.levels)):
        tokens = model.encode(image, level)
        yield f"rate{level}_indices", tokens.indices.flatten(1).numpy(), arrays[f"rate{level}_indices"]
        unscaled = Tokens(tokens.indices, torch.zeros(1, model.channels))
        yield f"rate{level}_z_hat", model.rough_latent(unscaled, level).numpy(), arrays[f"rate{level}_z_hat"]
        rough = model.rough_latent(tokens, level)
        yield f"rate{level}_unet", model.velocity(rough, level).numpy(), arrays[f"rate{level}_unet"]
        yield f"rate{level}_x0", model.denoise(rough, level).numpy(), arrays[f"rate{level}_x0"]
        if f"rate{level}_image" in arrays:
            yield f"rate{level}_image", model.decode(tokens, level).numpy(), arrays[f"rate{level}_image"]


CHECKS: dict[str, Callable[[dict[str, Any], dict[str, np.ndarray]], Iterator[Comparison]] | None] = {
    "cod_pixel": cod,
    "cod_latent": cod,
    "one_step": None,
    "diffc": diffc,
    "oscar": oscar,
}


def error_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Worst error relative to max(1, max |theirs|); infinite for another shape or unequal integers."""
    if ours.shape != theirs.shape:
        return float("inf")
    if theirs.dtype.kind in "iub":
        return 0.0 if np.array_equal(ours, theirs) else float("inf")
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


@torch.no_grad()
def check(path: Path) -> int:
    """Compare one golden file; returns the exit status for it."""
    kind = next((kind for kind in CHECKS if path.name.startswith(kind)), None)
    if kind is None:
        print(f"{path}: unknown kind; the name must start with one of {', '.join(CHECKS)}")
        return 2
    run = CHECKS[kind]
    if run is None:
        print(f"{path}: {kind} is not implemented yet")
        return 2
    try:
        golden = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        print(f"{path}: cannot be read: {error}")
        return 2
    status = 0
    compared = set()
    for name, ours, theirs in run(golden, arrays):
        error = error_of(ours, theirs)
        agrees = error <= TOLERANCE
        compared.add(name)
        status |= not agrees
        print(f"{path.name}  {name:<20} {error:.2e}  {'ok' if agrees else f'ABOVE {TOLERANCE:g}'}")
    if forgotten := set(arrays) - compared - {"image", "noise", "t"}:
        print(f"{path}: arrays that nothing was compared with: {', '.join(sorted(forgotten))}")
        status = 1
    return status


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__)
        return 2
    return max(check(Path(path)) for path in paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
