"""Learning curves of arms: perplexity over tokens and over hours, a chart for each set of rows that was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.reporting import notation
from pipeline.reporting.arms import FIXED, HELD_OUT, Arm, of_text
from pipeline.reporting.drawing import COLOURS, NARROW, WIDE, canvas, edges, fit_heights, reach, title
from pipeline.reporting.intervals import Interval, perplexity_interval
from pipeline.reporting.labels import SHARE, height_of, spread
from pipeline.reporting.numbers import finite
from pipeline.reporting.series import interval_in_training, labels_of

#: Colours of arms in their order; behind the last of them they begin again, with another dash.
LINES = ("family-ppl", "family-angle", "family-length", "family-linear", "family-weights", "ink")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.6)))
#: Points of the letters of an arm's name, of the line that it takes, and its most letters.
SIZE, APART, LETTERS = 8.0, 10.5, 22

Point = tuple[int, float | None, float, Interval | None]


def line_style(number: int) -> dict[str, Any]:
    """The colour and the dash of arm ``number``."""
    return {"color": COLOURS[LINES[number % len(LINES)]], "linestyle": DASHES[number // len(LINES) % len(DASHES)]}


@dataclass(frozen=True)
class Chart:
    """What was asked of several arms by one protocol: ``lines`` maps an arm's number to its points (tokens, hours of
    all processes or None, perplexity, its 95 % interval or None); ``dense`` is the dense model's perplexity on these
    rows."""

    name: str
    label: str
    lines: Mapping[int, tuple[Point, ...]]
    dense: float | None


def arm_charts(arms: Sequence[Arm]) -> list[Chart]:
    """The charts of all protocols; held-out text first, what more arms share before."""
    found: dict[str, dict[int, dict[int, Point]]] = {}
    named: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for number, arm in enumerate(arms):
        hours = _hours(arm)
        for name, fixed, (tokens, value, interval) in _asked(arm):
            if finite(value):
                key = repr(sorted(fixed.items(), key=lambda field: field[0]))
                named.setdefault(key, (name, fixed))
                point = (arm.tokens_before + tokens, hours.get(tokens), value, interval)
                # Of two at the same tokens the later stands: that of the export.
                found.setdefault(key, {}).setdefault(number, {})[tokens] = point
    labels = labels_of(list(named.values()), FIXED)
    charts = [
        Chart(
            name,
            label,
            {number: tuple(points[tokens] for tokens in sorted(points)) for number, points in found[key].items()},
            _dense(arms, fixed),
        )
        for (key, (name, fixed)), label in zip(named.items(), labels, strict=True)
    ]
    return sorted(charts, key=lambda chart: (chart.name != HELD_OUT, -len(chart.lines)))


def _asked(arm: Arm) -> Iterator[tuple[str, Mapping[str, Any], tuple[int, Any, Any]]]:
    """All that was asked of an arm's weights: the text's name, what fixes it, and (tokens, value, 95 % interval)."""
    for line in arm.records.held_out:
        found = (line["tokens"], line.get("held_out_perplexity"), interval_in_training(line))
        yield HELD_OUT, arm.protocol_in_training(line.get("rows")), found
    for line in arm.records.curve:
        for name, entry in line["perplexity"].items():
            yield of_text(name), arm.protocol(name, entry), (line["tokens"], entry["value"], perplexity_interval(entry))


def _hours(arm: Arm) -> dict[int, float]:
    """Hours of all processes by the tokens of each step, from the start of training on; empty where not known."""
    processes, metrics = arm.trained.get("processes"), arm.records.metrics
    if processes is None or arm.hours_before is None or not all(finite(line.get("seconds")) for line in metrics):
        return {}
    seconds = accumulate(line["seconds"] for line in metrics)
    hours = {line["tokens"]: arm.hours_before + s * processes / 3600 for line, s in zip(metrics, seconds, strict=True)}
    return {0: arm.hours_before, **hours}


def _dense(arms: Sequence[Arm], fixed: Mapping[str, Any]) -> float | None:
    """The perplexity of the dense model that was asked in the same way, where all arms that asked have the same."""
    values = {
        entry["value"]
        for arm in arms
        for name, entry in (arm.models.get("dense", {}).get("perplexity") or {}).items()
        if arm.protocol(name, entry) == fixed
    }
    return values.pop() if len(values) == 1 else None


def draw_chart(chart: Chart, names: Sequence[str], hours: str, narrow: bool = False) -> Figure:
    """Draw a chart over tokens and, where any arm's are known, over ``hours``; ``names`` are those of all arms.

    Each line ends at its name beside the axes. Bars are 95 % intervals over rows.
    """
    timed = any(point[1] is not None for points in chart.lines.values() for point in points)
    panels = 1 + timed
    # The names need their room, whatever is drawn.
    tall = max(3.0, 1.2 + (len(chart.lines) + 1) * APART / 72 / SHARE)
    size = (NARROW, tall * panels) if narrow else (WIDE, tall)
    figure, axes = canvas(panels if narrow else 1, 1 if narrow else panels, size)
    for which, panel in enumerate(axes):
        _draw_lines(panel, chart, which)
        panel.set_xlim(left=-0.02 * panel.get_xlim()[1])
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=which == 0))
        if which == 0:
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: notation.tokens(value)))
        panel.set_xlabel(hours if which else "tokens seen in training")
        title(panel, f"perplexity, {chart.name}")
        _name_lines(panel, chart, names, which)
    return figure


def _draw_lines(axes: Axes, chart: Chart, which: int) -> None:
    """The arms' lines over tokens (0) or hours (1), with their bars."""
    ends = []
    for number, points in chart.lines.items():
        known = [point for point in points if point[which] is not None]
        ends += edges([(value, bar) for _, _, value, bar in points])
        x, y, bars = ([point[field] for point in known] for field in (which, 2, 3))
        style = line_style(number) | {"linewidth": 1.4, "marker": "o", "markersize": 3, "gid": f"arm-{number}-{which}"}
        axes.errorbar(x, y, reach(y, bars), capsize=1.5, elinewidth=0.7, **style)
    lines = [chart.dense] if chart.dense is not None else []
    fit_heights(axes, min([*ends, *lines]), max([*ends, *lines]))
    for value in lines:
        axes.axhline(value, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)), gid=f"dense-reference-{which}")


def _name_lines(axes: Axes, chart: Chart, names: Sequence[str], which: int) -> None:
    """Each arm's name right of the axes, and the dense model's, at the height where its line ends or as near as the
    other names leave it."""
    ends = [
        (short_name(names[number]), (points[-1][which], points[-1][2]), line_style(number)["color"], f"name-{number}")
        for number, points in chart.lines.items()
        if points[-1][which] is not None
    ]
    if chart.dense is not None:
        words = f"dense {notation.significant(chart.dense)}"
        ends.append((words, (axes.get_xlim()[1], chart.dense), COLOURS["muted"], "name-dense"))
    whole = height_of(axes)
    places = [(axes.transScale + axes.transLimits).transform(end)[1] * whole for _, end, _, _ in ends]
    for (words, end, colour, gid), place in zip(ends, spread(places, APART, 0, whole), strict=True):
        axes.annotate(
            words,
            end,
            (1.04, place / whole),
            xycoords="data",
            textcoords="axes fraction",
            va="center",
            fontsize=SIZE,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
            gid=f"{gid}-{which}",
        )


def short_name(name: str) -> str:
    """A name that is long without its middle, where names of runs differ least."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS // 2 - 1]}\u2026{name[-LETTERS // 2 :]}"
