"""What each way of choosing blocks leaves without training, as lines over the number of removed blocks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.criteria import CONTROLS, CRITERIA
from pipeline.reporting import notation
from pipeline.reporting.drawing import COLOURS, NARROW, canvas, log_scale, reference_line, title
from pipeline.reporting.numbers import finite


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
            text = f"dense {notation.significant(dense)}"
            reference_line(axes, text, dense, "dense-reference", COLOURS["ink"], 8)
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
