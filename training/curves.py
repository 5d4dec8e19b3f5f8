"""Pictures of a run's curves, as PNG."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from training.run_log import DATA_WAIT_TIME, STEP_TIME, is_loss
from training.two_phase import FIGURE_PREFIX

RAW_COLOR, SMOOTH_COLOR, GRAY = "#a9c4e4", "#1f5fa8", "#6b7280"
EVENT_COLORS = {"skipped": "#d97706", "rolled_back": "#c81e1e", "resumed": "#9ca3af"}
"""Colours of the kinds of events that are drawn into the curves."""
MAX_COLUMNS = 3
FIGURE_WIDTH_INCHES = 12.6
ROW_HEIGHT_INCHES = 2.6
MIN_LOG_RANGE = 5.0
"""Values whose largest is less than this times their smallest get a linear axis. Source: ours."""
DPI = 130
MAX_DRAWN_POINTS = 4000
"""More steps than this are thinned out before they are drawn. Source: ours."""

Steps = Sequence[dict[str, Any]]
"""Lines of metrics.jsonl."""


def loss_curves(steps: Steps, events: Steps) -> bytes:
    """One panel per loss, logarithmic where it can be; the sum first."""
    names = loss_names(steps)
    figure, panels = _panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, name, steps, [_number(line.get(name)) for line in steps], events, log=True)
    return _png(figure)


def step_curves(steps: Steps, events: Steps, batch_size: int) -> bytes:
    """Learning rate, norm of the gradient before it is clipped, samples per second, data wait."""
    rates = [_number(line.get("lr")) for line in steps]
    norms = [_number(line.get("grad_norm")) for line in steps]
    seconds, waits = step_times(steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        samples_per_s, wait_percent = batch_size / seconds, 100 * waits / seconds
    figure, panels = _panels(4)
    _draw(panels[0], "learning rate", steps, rates, events, raw_only=True)
    _draw(panels[1], "norm of the gradient", steps, norms, events, log=True)
    _draw(panels[2], "samples per second", steps, samples_per_s, events)
    _draw(panels[3], "waits for data [% of the step]", steps, wait_percent, events)
    for axes in panels[2:]:
        axes.set_ylim(bottom=0)
    return _png(figure)


def step_times(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """Length of each step and its wait for data [s]; NaN where it was not noted."""
    times = [line.get("timing", {}) for line in steps]
    seconds = np.array([_number(taken.get(STEP_TIME)) for taken in times])
    waits = np.array([_number(taken.get(DATA_WAIT_TIME)) for taken in times])
    return seconds, waits


def loss_names(steps: Steps) -> list[str]:
    """Losses of a run, their sum first."""
    others = {"step", "timing"}
    names = dict.fromkeys(n for line in steps for n in line if is_loss(n) and n not in others)
    return sorted(names, key=lambda name: name != "total")


def calibration_names(steps: Steps) -> list[str]:
    """What calibration found in a run; nothing without calibration."""
    return [*dict.fromkeys(n for line in steps for n in line if n.startswith(FIGURE_PREFIX))]


def calibration_curves(steps: Steps, events: Steps) -> bytes:
    """One panel per figure of calibration; norms and factors are logarithmic where they can be."""
    names = calibration_names(steps)
    figure, panels = _panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        values = [_number(line.get(name)) for line in steps]
        title = name.removeprefix(FIGURE_PREFIX).replace("_", " ")
        _draw(axes, title, steps, values, events, log=title.startswith(("norm", "factor")))
    return _png(figure)


def smoothed(values: Sequence[float], window: float) -> np.ndarray:
    """Mean of about the last `window` values that are finite, weighted exponentially.

    Args:
        values: One per step; NaN where there is none.
        window: 1 changes nothing.
    """
    keep = 1 - 1 / max(1.0, window)
    total = weight = 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total = keep * total + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        means.append(total / weight if weight else math.nan)
    return np.array(means)


def smoothing_window(num_steps: int) -> float:
    """A fiftieth of the run: keeps its shape and hides its noise. Source: ours."""
    return max(1.0, num_steps / 50)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    num_columns = 2 if count in (1, 2, 4) else MAX_COLUMNS
    num_rows = math.ceil(count / num_columns)
    size = (FIGURE_WIDTH_INCHES, ROW_HEIGHT_INCHES * num_rows)
    # a Figure of its own, not pyplot's: no window system, no state that outlives it
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes in every[count:]:
        axes.set_visible(False)
    return figure, list(every[:count])


def _draw(
    axes: Axes,
    title: str,
    steps: Steps,
    values: Sequence[float] | np.ndarray,
    events: Steps,
    log: bool = False,
    raw_only: bool = False,
) -> None:
    number = np.array([line["step"] for line in steps])
    raw = np.array(values, np.float64)
    thin = slice(None, None, max(1, len(raw) // MAX_DRAWN_POINTS))
    if raw_only:
        axes.plot(number[thin], raw[thin], color=SMOOTH_COLOR, linewidth=1.6)
    else:
        smooth = smoothed(list(raw), smoothing_window(len(raw)))
        axes.plot(number[thin], raw[thin], color=RAW_COLOR, linewidth=0.8)
        axes.plot(number[thin], smooth[thin], color=SMOOTH_COLOR, linewidth=1.6)
    positive = raw[raw > 0]
    if log and positive.size and positive.max() > MIN_LOG_RANGE * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    for event in events:
        if event.get("kind") in EVENT_COLORS:
            color = EVENT_COLORS[event["kind"]]
            axes.axvline(event["step"], color=color, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.set_title(title, fontsize=10, loc="left", color="#111827")
    axes.grid(True, color="#e5e7eb", linewidth=0.6)
    axes.tick_params(labelsize=8, colors=GRAY, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d1d5db")


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()
