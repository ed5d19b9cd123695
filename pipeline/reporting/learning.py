"""The learning curve of a run: how it recovered in training, over tokens and hours, as training and its exports say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.errors import RegrowError
from pipeline.reporting import notation
from pipeline.reporting.drawing import COLOURS, NARROW, WIDE, canvas, edges, fit_heights, reach, reference_line, title
from pipeline.reporting.labels import Label, sides
from pipeline.reporting.numbers import finite
from pipeline.reporting.series import Series, perplexity_series, task_series

_MOST_POINTS = 800  # longer loss curves are averaged in groups, to keep the page small
_MARKS = "osD^vPX*"
#: Colours of a panel's lines in their order; what is behind them is told apart by its markers.
_LINES = ("held-out", "kept", "removed-line", "muted")


def learning_curve(
    metrics: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    references: Mapping[str, float | None],
    narrow: bool = False,
    tasks: Sequence[Mapping[str, Any]] = (),
    processes: int | None = None,
    curve: Sequence[Mapping[str, Any]] = (),
) -> Figure:
    """Draw training loss, perplexities, and what tasks said, against tokens seen.

    `metrics`, `held_out`, `tasks` and `curve` are the parsed lines of metrics.jsonl, held_out.jsonl, tasks.jsonl and
    curve.jsonl; what was asked by another protocol has a line of its own. `references` maps a name (`dense`, `pruned`)
    to a held-out perplexity, drawn as a dashed line where it is a number. Loss is in nats per token; bars are the 95 %
    intervals of perplexities, and one standard error of tasks. With the number of `processes`, an axis above says the
    hours of all of them, at the run's mean speed. Whichever part has no lines is left out. Raises RegrowError where all
    are missing.
    """
    losses = [(line["tokens"], line["loss"]) for line in metrics if finite(line.get("loss"))]
    of_held_out, others = perplexity_series(held_out, curve)
    asked = task_series(tasks, curve)
    shown = [bool(one) for one in (losses, of_held_out, others, asked)]
    if not any(shown):
        raise RegrowError("learning curve: neither metrics.jsonl nor held_out.jsonl has a finite value to draw")
    figure, axes = _canvas(sum(shown), narrow)
    panels = iter(axes)
    if losses:
        _draw_losses(next(panels), losses)
    if of_held_out:
        _draw_perplexities(next(panels), of_held_out, references, "held-out perplexity")
    if others:
        _draw_perplexities(next(panels), others, {}, "perplexity of other texts")
    if asked:
        _draw_tasks(next(panels), asked)
    hours = _hours_per_token(metrics, processes)
    for panel in axes:
        panel.set_xlim(left=-0.02 * panel.get_xlim()[1])  # room for the marker of the value before training
        panel.set_xlabel("tokens seen in training")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: notation.tokens(value)))
        if hours:
            above = panel.secondary_xaxis("top", functions=(lambda x: x * hours, lambda x: x / hours))
            above.set_xlabel("hours of all processes" if processes > 1 else "hours", fontsize=8, color=COLOURS["muted"])
            above.tick_params(labelsize=8, colors=COLOURS["muted"])
            above.spines["top"].set_color(COLOURS["muted"])
    return figure


def _canvas(panels: int, narrow: bool) -> tuple[Figure, list[Axes]]:
    """So many panels: one above the other, beside each other, or four in a square."""
    if narrow:
        return canvas(panels, 1, (NARROW, 2.5 * panels))
    rows, columns = (2, 2) if panels == 4 else (1, panels)
    return canvas(rows, columns, (WIDE, 3.1 * rows))


def _hours_per_token(metrics: Sequence[Mapping[str, Any]], processes: int | None) -> float | None:
    """Hours of all processes for a token, at the mean speed; None where it is not known."""
    seconds = math.fsum(line["seconds"] for line in metrics if finite(line.get("seconds")))
    return seconds * processes / 3600 / metrics[-1]["tokens"] if processes and seconds else None


def _draw_lines(axes: Axes, series: Sequence[Series], kind: str) -> None:
    """A line for each protocol, with bars, and a legend that says which is which."""
    for number, one in enumerate(series):
        x, y, bars = zip(*one.points, strict=True)
        axes.errorbar(
            x,
            y,
            reach(y, bars),
            color=COLOURS[_LINES[min(number, len(_LINES) - 1)]],
            linewidth=1.5,
            marker=_MARKS[number % len(_MARKS)],
            markersize=4,
            capsize=2,
            label=one.label,
            gid=f"{kind}-{one.label}".replace(", ", "-").replace(" ", "-"),
        )


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=COLOURS["muted"])


def _draw_tasks(axes: Axes, asked: Sequence[Series]) -> None:
    _draw_lines(axes, asked, "task")
    axes.set_ylim(bottom=0)
    title(axes, "tasks, right of a hundred")
    _legend(axes)


def _draw_losses(axes: Axes, losses: list[tuple[int, float]]) -> None:
    """One pale line of losses and, where there are enough of them, their running mean on top."""
    group = math.ceil(len(losses) / _MOST_POINTS)
    chunks = [losses[start : start + group] for start in range(0, len(losses), group)]
    x = [chunk[-1][0] for chunk in chunks]
    y = [math.fsum(loss for _, loss in chunk) / len(chunk) for chunk in chunks]
    label = "each step" if group == 1 else f"mean of {group} steps"
    window = len(y) // 12
    if window < 3:
        axes.plot(x, y, color=COLOURS["kept"], linewidth=1.5, label=label, gid="training-loss")
    else:
        axes.plot(x, y, color=COLOURS["faint"], linewidth=1, label=label, gid="training-loss")
        means = [math.fsum(y[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(y))]
        axes.plot(x, means, color=COLOURS["kept"], linewidth=1.7, label=f"mean of the last {window * group}")
    title(axes, "training loss (nats per token)")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=COLOURS["muted"], loc="upper right")


def _draw_perplexities(
    axes: Axes, series: Sequence[Series], references: Mapping[str, float | None], words: str
) -> None:
    """Perplexities, the first line's last value written beside it, between the dashed reference lines."""
    _draw_lines(axes, series, "perplexity")
    points = [point for one in series for point in one.points]
    lines = {name: value for name, value in references.items() if finite(value)}
    held = [*edges([(value, bar) for _, value, bar in points]), *lines.values()]
    fit_heights(axes, min(held), max(held))
    x, y, bar = series[0].points[-1]
    falls = len(series[0].points) > 1 and series[0].points[-2][1] > y
    last, *above = sides(axes, [Label(y, gap=6, covered=4 if falls else 0), *map(Label, lines.values())])
    # The bar of the last point stands at the end of the lines.
    end = 0.9 if bar else 1.0
    for (name, value), upwards in zip(lines.items(), above, strict=True):
        text = f"{name} {notation.significant(value)}"
        reference_line(axes, text, value, f"reference-{name}", COLOURS["muted"], 8.5, upwards, end)
    axes.annotate(
        notation.significant(y),
        (x, y),
        (-4 if bar else 0, 6 if last else -6),
        textcoords="offset points",
        ha="right" if len(series[0].points) > 1 else "left",
        va="bottom" if last else "top",
        color=COLOURS["held-out"],
        fontsize=8.5,
        fontweight="bold",
    )
    title(axes, words)
    # One line of held-out text needs no name.
    if len(series) > 1 or not references:
        _legend(axes)
