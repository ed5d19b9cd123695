"""The lines of a run: how it recovered in training, and what each way of choosing blocks leaves without training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.criteria import CONTROLS, CRITERIA
from pipeline.errors import RegrowError
from pipeline.reporting import notation
from pipeline.reporting.drawing import COLOURS, NARROW, WIDE, canvas, finite, log_scale, title

_MOST_POINTS = 800  # longer loss curves are averaged in groups, to keep the page small


def learning_curve(
    metrics: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    references: Mapping[str, float | None],
    narrow: bool = False,
    tasks: Sequence[Mapping[str, Any]] = (),
    processes: int | None = None,
) -> Figure:
    """Draw training loss, held-out perplexity, and what tasks said, against tokens seen.

    `metrics`, `held_out` and `tasks` are the parsed lines of metrics.jsonl, held_out.jsonl and tasks.jsonl;
    `references` maps a name (`dense`, `pruned`) to a perplexity, drawn as a dashed line where it is a number. Loss is
    in nats per token. With the number of `processes`, an axis above says the hours of all of them, at the run's mean
    speed. Whichever part has no lines is left out. Raises RegrowError where all are missing.
    """
    losses = [(line["tokens"], line["loss"]) for line in metrics if finite(line.get("loss"))]
    points = [
        (line["tokens"], line["held_out_perplexity"]) for line in held_out if finite(line.get("held_out_perplexity"))
    ]
    asked = _task_points(tasks)
    panels = bool(losses) + bool(points) + bool(asked)
    if not panels:
        raise RegrowError("learning curve: neither metrics.jsonl nor held_out.jsonl has a finite value to draw")
    rows, columns = (panels, 1) if narrow else (1, panels)
    figure, axes = canvas(rows, columns, (NARROW, 2.5 * panels) if narrow else (WIDE, 3.1))
    if losses:
        _draw_losses(axes[0], losses)
    if points:
        _draw_held_out(axes[int(bool(losses))], points, references)
    if asked:
        _draw_tasks(axes[-1], asked)
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


def _hours_per_token(metrics: Sequence[Mapping[str, Any]], processes: int | None) -> float | None:
    """Hours of all processes for a token, at the mean speed; None where it is not known."""
    seconds = math.fsum(line["seconds"] for line in metrics if finite(line.get("seconds")))
    return seconds * processes / 3600 / metrics[-1]["tokens"] if processes and seconds else None


def _task_points(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """Of each task (tokens, value, standard error) in points of a hundred, in the lines' order."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for line in lines:
        for task, entry in line["tasks"].items():
            if finite(entry.get("value")) and entry.get("share", True):
                point = (line["tokens"], 100 * entry["value"], 100 * (entry.get("stderr") or 0))
                found.setdefault(task, []).append(point)
    return found


def _draw_tasks(axes: Axes, asked: Mapping[str, list[tuple[int, float, float]]]) -> None:
    """A line for each task, with bars of one standard error."""
    marks = "osD^vPX*"
    for number, (task, points) in enumerate(asked.items()):
        x, y, error = zip(*points, strict=True)
        colour = COLOURS["held-out" if number == 0 else "kept" if number == 1 else "muted"]
        axes.errorbar(
            x,
            y,
            error,
            color=colour,
            linewidth=1.5,
            marker=marks[number % len(marks)],
            markersize=4,
            capsize=2,
            label=task,
            gid=f"task-{task}",
        )
    axes.set_ylim(bottom=0)
    title(axes, "tasks, right of a hundred")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=COLOURS["muted"])


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


def _draw_held_out(axes: Axes, points: list[tuple[int, float]], references: Mapping[str, float | None]) -> None:
    """Held-out perplexity with its last value written beside it, between the dashed reference lines."""
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=COLOURS["held-out"], linewidth=1.7, marker="o", markersize=4, gid="held-out-perplexity")
    lines = {name: value for name, value in references.items() if finite(value)}
    everything = [*y, *lines.values()]
    low, high = min(everything), max(everything)
    room = high / low
    if low > 0 and room > 3:
        log_scale(axes, low / room**0.14, high * room**0.14)
    else:
        axes.set_ylim(low - 0.14 * (high - low or low), high + 0.14 * (high - low or high))
    for name, value in lines.items():
        axes.axhline(value, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)), gid=f"reference-{name}")
        axes.annotate(
            f"{name} {notation.significant(value)}",
            (1, value),
            (-2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=COLOURS["muted"],
            fontsize=8.5,
        )
    axes.annotate(
        notation.significant(y[-1]),
        (x[-1], y[-1]),
        (0, 6),
        textcoords="offset points",
        ha="right" if len(x) > 1 else "left",
        color=COLOURS["held-out"],
        fontsize=8.5,
        fontweight="bold",
    )
    title(axes, "held-out perplexity")


def perplexity_lines(ways: Sequence[Mapping[str, Any]], *, text: str, dense: float | None = None) -> list[Figure]:
    """Draw perplexity after pruning, without training, against the number of removed blocks.

    Each way has ``by``, ``selection``, ``linear_map``, ``chosen`` and ``points``: pairs (removed, perplexity or None).
    One drawing for blocks chosen one by one and one for windows of neighbours, where there are any, with the same
    axes; the controls stand dotted in both. A perplexity that is not finite is a caret at the top. ``text`` says what
    was measured on. An empty list where no perplexity is finite.
    """
    known = [value for way in ways for _, value in way["points"] if finite(value) and value > 0]
    if not known:
        return []
    counts = sorted({count for way in ways for count, _ in way["points"]})
    low, high = min([*known, *([dense] if dense else [])]), max(known)
    room = max(high / low, 1.2)
    controls = [way for way in ways if way["selection"] == "control"]
    groups = {
        "blocks chosen one by one": [way for way in ways if way["selection"] not in ("control", "contiguous")],
        "windows of neighbouring blocks": [way for way in ways if way["selection"] == "contiguous"],
    }
    shown = {name: group for name, group in groups.items() if group} or {"controls": []}
    entries = len(controls) + max(len(group) for group in shown.values())
    figures = []
    for name, group in shown.items():
        figure, (axes,) = canvas(1, 1, (NARROW, 4.6))
        log_scale(axes, low / room**0.06, high * room**0.08)
        for way in [*controls, *group]:
            _draw_way(axes, way, axes.get_ylim()[1])
        if dense:
            axes.axhline(dense, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)), gid="dense-reference")
            axes.annotate(
                f"dense {notation.significant(dense)}",
                (1, dense),
                (-2, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=COLOURS["muted"],
            )
        axes.set_xticks(counts)
        axes.set_xlim(min(counts) - 0.6, max(counts) + 0.6)
        axes.set_xlabel("blocks removed")
        title(axes, f"{name}: {text} perplexity")
        handles = axes.get_legend_handles_labels()[0]
        # As many entries in each, so that the axes beside each other are of one height.
        handles += [Line2D([], [], alpha=0, label=" ")] * (entries - len(handles))
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=2,
            frameon=False,
            fontsize=8,
            labelcolor=COLOURS["ink"],
            handlelength=2.4,
            columnspacing=1.2,
            borderaxespad=0,
            labelspacing=0.35,
        )
        figures.append(figure)
    return figures


def way_words(way: Mapping[str, Any]) -> str:
    """`ppl, greedy` or `angular_last, contiguous with a linear map`; a control by its name alone."""
    words = way["by"] if way["selection"] == "control" else f"{way['by']}, {way['selection']}"
    if way["selection"] == "given":
        words = "blocks named in the config"
    return words + (" with a linear map" if way.get("linear_map") else "")


def _short(way: Mapping[str, Any]) -> str:
    """As ``way_words``, without what the drawing's heading says already."""
    words = way["by"] + (", greedy" if way["selection"] == "greedy" else "")
    return words + (" + linear map" if way.get("linear_map") else "") + (" (this run)" if way.get("chosen") else "")


def _colour_and_marker(by: str) -> tuple[str, str]:
    """Colour by family, marker by member: the criteria of one family often lie close together."""
    if by in CONTROLS:
        return "muted", CONTROLS[by].marker
    return (f"family-{CRITERIA[by].family}", CRITERIA[by].marker) if by in CRITERIA else ("ink", "d")


def _draw_way(axes: Axes, way: Mapping[str, Any], top: float) -> None:
    """One line; dashed for greedy, dash-dotted with a linear map, dotted for a control, thick for the chosen way."""
    control = way["selection"] == "control"
    colour, marker = _colour_and_marker(way["by"])
    style: str | tuple[int, tuple[float, ...]] = "-"
    if control:
        style = (0, (1, 1.6))
    elif way.get("linear_map"):
        style = (0, (6, 2, 1, 2))
    elif way["selection"] == "greedy":
        style = (0, (4, 2))
    axes.plot(
        [count for count, _ in way["points"]],
        [value if finite(value) and value > 0 else math.nan for _, value in way["points"]],
        color=COLOURS[colour],
        linestyle=style,
        marker=marker,
        markersize=4,
        linewidth=2.6 if way.get("chosen") else 1.2,
        label=_short(way),
        gid="way-" + "-".join([way["by"], way["selection"], *(["linear"] if way.get("linear_map") else [])]),
    )
    lost = [count for count, value in way["points"] if not finite(value)]
    if lost:
        axes.plot(lost, [top] * len(lost), "^", color=COLOURS[colour], markersize=5, clip_on=False)
