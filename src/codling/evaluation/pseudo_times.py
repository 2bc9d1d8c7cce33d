"""A plot of measured pseudo-times (`eval` extra)."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codling.codecs.pseudo_times import Measurement, Place
from codling.diffusion.pseudo_time import cosine_at, cosine_of
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
    """Cosine against flow time, alpha-bar and, where the model has them, timesteps: what noise gives, where each level
    was measured, and what its network is told.

    Raises as `plot_format` and `write_whole` do.
    """
    kind, buffer = plot_format(path), io.BytesIO()
    from matplotlib.figure import Figure

    axes = axes_of(measurement)
    figure = Figure(figsize=(5 * len(axes), 4), layout="constrained")
    for panel, axis in zip(np.ravel(figure.subplots(1, len(axes), sharey=True)), axes, strict=True):
        panel.plot(axis.points, axis.cosines, "0.6", label="noisy latents")
        cosines = [level.cosine for level in measurement.levels]
        measured = [axis.coordinate(level.measured) for level in measurement.levels]
        panel.plot(measured, cosines, "o", label="measured")
        panel.plot([axis.coordinate(level.told) for level in measurement.levels], cosines, "x", label="told")
        for level, x in zip(measurement.levels, measured, strict=True):
            panel.annotate(str(level.level), (x, level.cosine), (4, -10), textcoords="offset points", fontsize=8)
        panel.set(xlabel=axis.label, xlim=axis.limits, ylim=(0, 1.02))
        panel.label_outer()
    figure.axes[0].set_ylabel("cosine with the true latent")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(buffer, format=kind)
    write_whole(path, buffer.getvalue(), force=force)


@dataclass(frozen=True)
class Axis:
    """One way to say a place between noise and data. points, cosines: of noisy latents. limits: noise, data."""

    label: str
    coordinate: Callable[[Place], float | None]
    points: Sequence[float]
    cosines: Sequence[float]
    limits: tuple[float, float]


def axes_of(measurement: Measurement) -> list[Axis]:
    """Flow time, alpha-bar, and the timesteps of the model's schedule if it has one; noise is at the left of each."""
    whole, s = np.linspace(0, 1, 201).tolist(), measurement.deviation
    by_time = [cosine_at(time, deviation=s) for time in whole]
    by_share = [cosine_of(share, deviation=s) for share in whole]
    axes = [
        Axis("flow time (0 noise, 1 data)", lambda place: place.time, whole, by_time, (0, 1)),
        Axis("alpha-bar, variance preserving (0 noise, 1 data)", lambda place: place.share, whole, by_share, (0, 1)),
    ]
    if measurement.schedule is not None:
        shares = measurement.schedule.tolist()
        steps = range(len(shares))
        by_step = [cosine_of(share, deviation=s) for share in shares]
        axes.append(Axis("timestep", lambda place: place.timestep, steps, by_step, (len(shares) - 1, 0)))
    return axes
