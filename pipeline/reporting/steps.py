"""How training went, step by step: rate, gradient norm, speed, use of the GPU's peak, and memory, as small curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.reporting import notation
from pipeline.reporting.drawing import COLOURS, NARROW, WIDE, canvas, for_page, log_scale, title
from pipeline.reporting.numbers import finite

_MOST_POINTS = 300  # longer curves are averaged in groups, to keep the page small
_LOG_SPREAD = 30  # largest over smallest value above which an axis is logarithmic
_COLUMNS = 3


@dataclass(frozen=True)
class Measure:
    """A key of metrics.jsonl: what it is called, its unit as a factor, and whether its axis begins at 0."""

    key: str
    words: str
    scale: float = 1.0
    from_zero: bool = True


MEASURES = (
    Measure("learning_rate", "learning rate"),
    Measure("grad_norm", "gradient norm, before clipping", from_zero=False),
    Measure("tokens_per_second", "tokens a second"),
    Measure("mfu", "MFU, % of the peak", scale=100),
    Measure("memory", "most memory of a step, GiB", scale=2**-30),
)


def step_measures(metrics: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """Those that two lines of metrics.jsonl or more have a number of: a CPU has no peak, say."""
    return [one for one in MEASURES if sum(finite(line.get(one.key)) for line in metrics) > 1]


def step_drawings(metrics: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Any] | None:
    """The curves for the page, wide and narrow; None where there is nothing to draw."""
    shown = step_measures(metrics)
    if not shown:
        return None
    label = f"Curves over the steps of training: {', '.join(one.words for one in shown)}."
    return for_page("training-steps", label, out, lambda narrow: step_curves(metrics, narrow))


def step_curves(metrics: Sequence[Mapping[str, Any]], narrow: bool = False) -> Figure:
    """Draw a panel for each measure over the number of the step. Of a long run each point is the mean of a group of
    steps, of gradient norms the largest: a spike must not vanish."""
    shown = step_measures(metrics)
    columns = 1 if narrow else min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    size = (NARROW, 1.55 * rows) if narrow else (WIDE, 1.9 * rows)
    figure, panels = canvas(rows, columns, size)
    for panel in panels[len(shown) :]:
        panel.remove()
    for panel, measure in zip(panels, shown, strict=False):
        _draw(panel, metrics, measure)
    return figure


def _draw(axes: Axes, metrics: Sequence[Mapping[str, Any]], measure: Measure) -> None:
    points = [(line["step"], measure.scale * line[measure.key]) for line in metrics if finite(line.get(measure.key))]
    group = math.ceil(len(points) / _MOST_POINTS)
    chunks = [points[start : start + group] for start in range(0, len(points), group)]
    of_norms = measure.key == "grad_norm"
    x = [chunk[-1][0] for chunk in chunks]
    y = [max(v for _, v in chunk) if of_norms else math.fsum(v for _, v in chunk) / len(chunk) for chunk in chunks]
    axes.plot(x, y, color=COLOURS["kept"], linewidth=1.3, gid=f"steps-{measure.key}")
    low, high = min(y), max(y)
    if measure.from_zero or low <= 0:
        axes.set_ylim(0, 1.08 * high or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
    elif high / low > _LOG_SPREAD:
        log_scale(axes, low / 1.3, 1.3 * high)
    else:
        axes.set_ylim(0, 1.08 * high)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.set_xlabel("step")
    title(axes, measure.words + (f", largest of {group}" if of_norms and group > 1 else ""))


def _short(value: float, _: int | None = None) -> str:
    """A tick's number, short: `3e-4`, `0.5`, `12 k`."""
    if value == 0:
        return "0"
    if value < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return notation.tokens(value) if value >= 1000 else f"{value:g}"
