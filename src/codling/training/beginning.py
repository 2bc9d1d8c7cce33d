"""A run that begins from the weights of a model, by name or directory: all of it, or its denoiser alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codling.errors import ConfigError
from codling.models.denoiser import Denoiser
from codling.models.oscar import Oscar
from codling.models.wiener import fit_spectrum
from codling.training.run import Run
from codling.weights.catalogue import CONFIG, model_id, read_config
from codling.weights.registry import load_network, locate
from codling.weights.store import KINDS, Manifest, load_parts


@dataclass(frozen=True)
class Beginning:
    """A model to begin from. origin: its name and id. weights: its state dict, in float32 on the CPU."""

    origin: str
    weights: dict[str, Tensor]


def begin(run: Run[Any], model: str) -> None:
    """Give a new run the weights of a model, by name or directory; all processes of the run must take part.

    Raises ConfigError naming what differs where the model is not one that this run could have made, ModelError where
    there is no such model or its files are damaged.
    """
    # One process fetches a model that is on the hub, before the others look for it.
    run.engine.together(lambda: locate(model) if run.engine.main else None)
    found = run.engine.together(lambda: read_beginning(run, model))
    run.begin(found.weights, found.origin)


def begin_denoiser(denoiser: Denoiser, prior: str, images: list[Tensor]) -> None:
    """Give a new denoiser the weights of a model, by name or directory, or if that is "" the spectrum of images
    (3, H, W).

    Raises ConfigError unless the model is a denoiser that this one can begin as, see `Denoiser.begin_as`, or an OSCAR
    with one.
    """
    if not prior:
        denoiser.filter.log_power.copy_(fit_spectrum(images, denoiser.config.filter.knots))
        return
    network = load_network(prior, device=torch.device("cpu"))
    network = network.denoiser if isinstance(network, Oscar) else network
    if not isinstance(network, Denoiser):
        raise ConfigError(f"training: prior {prior!r} is not a denoiser; choose one like diffc-xs")
    try:
        denoiser.begin_as(network)
    except ConfigError as error:
        raise ConfigError(f"training: prior {prior!r} does not fit: {error}; choose another") from error


def read_beginning(run: Run[Any], model: str) -> Beginning:
    """Read a model that fits a run. Raises as `begin` does."""
    name, directory = locate(model)
    values = read_config(directory)
    manifest = Manifest.read(values, str(directory / CONFIG))
    origin = f"{name} (id {model_id(values):06x})"
    wanted = next(kind for kind, (config, _) in KINDS.items() if config is type(run.config.model))
    if manifest.kind != wanted:
        raise ConfigError(
            f"training cannot begin from {origin}: it is of kind {manifest.kind!r} and the recipe trains {wanted!r}; "
            "name a model of that kind, or another recipe"
        )
    if differing := run.differing(manifest.config):
        raise ConfigError(
            f"training cannot begin from {origin}: {differing}; name another model, or --set these of the recipe as "
            "the model has them"
        )
    return Beginning(origin, load_parts(directory, device=torch.device("cpu")).model.state_dict())
