"""From a training run to a model's directory."""

from dataclasses import replace
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codling.bitstream.index_tables import MAX_GROUPS, fit_index_model
from codling.codecs.backbones import DenoiserBackbone
from codling.codecs.calibration import calibrate
from codling.codecs.diffc_stream import DiffCConfig
from codling.models.denoiser import Denoiser
from codling.models.oscar import Oscar
from codling.pictures import to_image_array
from codling.training.data import load_pictures
from codling.training.index_maps import index_maps
from codling.training.loop import spectrum_pictures
from codling.training.oscar_run import OscarRun
from codling.training.run import Run
from codling.weights.catalogue import Precision
from codling.weights.store import Manifest, Parts, round_weights, save_model

# Pictures that tables are fitted on: index tables (of `cod-xs`, 4,000 instead of these save 1% of the bits and take
# minutes more on a CPU; `codling weights predict` saves a fifth), error tables.
INDEX_PICTURES, ERROR_PICTURES = 1000, 40
# How DiffC's streams of denoisers go: as these are trained to see them, without what was not said yet.
HIDING = DiffCConfig(
    times=(960, 918, 860, 799, 750, 705, 660, 623, 560, 500, 440, 380, 265, 160, 75, 35),
    threshold=-36,
    grain=0.0,
    empty=True,
    level=560,
)
# Numbers in the index tables of an OSCAR level, two bytes each.
TABLE_ENTRIES = 1 << 15


def export_run(
    run: Run[Any],
    directory: Path,
    *,
    precision: Precision = "float16",
    pictures: int = INDEX_PICTURES,
    error_pictures: int = ERROR_PICTURES,
) -> Manifest | None:
    """Write the averaged model with the tables that its codec needs, fitted on training or validation pictures.

    Of many processes the main one writes; the others only lend their part of the weights, and get None.
    """
    model = run.averaged_model().cpu()
    if not run.engine.main:
        return None
    round_weights(model, precision)
    if isinstance(model, Denoiser):
        return save_model(directory, denoiser_parts(run, model, error_pictures), precision=precision)
    if isinstance(run, OscarRun):
        return save_model(directory, oscar_parts(run, model, pictures), precision=precision)
    # Indices are of the picture itself, in latent space too: no autoencoder is needed for them.
    parts = Parts(model, autoencoder=run.config.autoencoder)
    (maps,) = index_maps(parts, _pictures(run, pictures))
    tables = fit_index_model([indices[0] for indices in maps], run.config.model.condition.codebook_size)
    return save_model(directory, replace(parts, index_model=tables), precision=precision)


def denoiser_parts(run: Run[Any], model: Denoiser, count: int) -> Parts:
    """A denoiser with its error tables, measured on so many pictures."""
    data = _pictures(run, count)
    images = [
        torch.from_numpy(to_image_array(picture))[None]
        for picture in islice(spectrum_pictures(run.config, data), count)
    ]
    tables = calibrate(DenoiserBackbone(model), images, conditional=False)
    return Parts(model, error_tables={False: tables}, diffc=HIDING)


def oscar_parts(run: OscarRun, model: Oscar, count: int) -> Parts:
    """An OSCAR model with index tables for every level, small ones, and for DiffC what its jumps were planned with."""
    stacks = index_maps(Parts(model), _pictures(run, count))
    maps = ([indices[depth] for indices in stack] for stack in stacks for depth in range(len(stack[0])))
    tables = (
        fit_index_model(found, level.codebook_size, groups=table_groups(level.codebook_size))
        for found, level in zip(maps, model.levels, strict=True)
    )
    steps = run.jumps.walks
    return Parts(model, index_models=tuple(tables), error_tables={False: steps.tables}, diffc=steps.settings)


def table_groups(codebook_size: int) -> int:
    """The most groups, up to the usual ones, whose tables have no more than `TABLE_ENTRIES` numbers."""
    return max(1, min(MAX_GROUPS, isqrt(TABLE_ENTRIES // codebook_size) - 1))


def _pictures(run: Run[Any], count: int) -> list[np.ndarray]:
    """So many pictures, of those that the run trains on."""
    config = run.config
    return load_pictures(config.data, crop=config.crop, scales=config.scales, limit=count).pictures
