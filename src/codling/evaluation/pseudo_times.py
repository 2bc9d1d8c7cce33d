"""A plot of measured pseudo-times (`eval` extra)."""

from pathlib import Path

import numpy as np

from codling.codecs.pseudo_times import Measurement
from codling.diffusion.pseudo_time import cosine_at
from codling.errors import ModelError


def plot(measurement: Measurement, path: Path) -> None:
    """Cosine against flow time: what noise gives, where each level was measured, and the time its network is told."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModelError("plots need the package matplotlib: pip install 'codling[eval]'") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    times = np.linspace(0, 1, 201)
    axes.plot(times, [cosine_at(t, deviation=measurement.deviation) for t in times], "0.6", label="noisy latents")
    cosines = [level.cosine for level in measurement.levels]
    axes.plot([level.time for level in measurement.levels], cosines, "o", label="measured")
    axes.plot([level.told for level in measurement.levels], cosines, "x", label="the model's own times")
    for level in measurement.levels:
        axes.annotate(str(level.level), (level.time, level.cosine), (4, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="flow time (0 noise, 1 data)", ylabel="cosine with the true latent", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="lower right")
    figure.savefig(path)
