"""A plot of measured pseudo-times (`eval` extra)."""

import io
from pathlib import Path

import numpy as np

from codling.codecs.pseudo_times import Measurement
from codling.diffusion.pseudo_time import cosine_at
from codling.errors import ConfigError, ModelError
from codling.files import write_whole


def plot_format(path: Path) -> str:
    """What matplotlib calls the format of a plot of that name.

    Raises ConfigError for a suffix that it cannot write, and ModelError without matplotlib.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ModelError("plots need the package matplotlib: pip install 'codling[eval]'") from error
    name = path.suffix.lower().removeprefix(".")
    if name not in FigureCanvasBase.get_supported_filetypes():
        raise ConfigError(f"cannot write a plot as {path.name}: unknown suffix {path.suffix!r}; use .png, .svg or .pdf")
    return name


def plot(measurement: Measurement, path: Path, *, force: bool) -> None:
    """Cosine against flow time: what noise gives, where each level was measured, and the time its network is told.

    Raises as `plot_format` and `write_whole` do.
    """
    kind, buffer = plot_format(path), io.BytesIO()
    from matplotlib.figure import Figure

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
    figure.savefig(buffer, format=kind)
    write_whole(path, buffer.getvalue(), force=force)
