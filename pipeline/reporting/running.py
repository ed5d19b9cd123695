"""What the models cost to run, as the page and the card show it: a table of all sizes, and curves over the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pipeline.reporting import notation
from pipeline.reporting.drawing import COLOURS, NARROW, WIDE, canvas, for_page, legend, log_scale, title
from pipeline.reporting.model_rows import MODELS

#: Colour, marker and line of each model: told apart in grey too.
LOOKS: dict[str, tuple[str, str, str]] = {
    "dense": ("kept", "o", "-"),
    "pruned": ("removed-line", "s", "--"),
    "regrown": ("held-out", "D", "-"),
}
MEASURES = ("tokens/s", "first token", "each further", "memory")

Sizes = dict[tuple[int, int], dict[str, Mapping[str, Any]]]


def running_table(models: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of the page, or None where no cost was measured.

    ``measures`` are the words over the columns of each model. A row has ``new_tokens``, ``batch`` and ``groups``: for
    each of the three models ``cells``, a text for each measure, or ``instead``, the words that stand for all of them.
    ``note`` says how it was measured.
    """
    sizes = _sizes(models)
    if not sizes:
        return None
    rows = [
        {"new_tokens": new, "batch": batch, "groups": [_group(found.get(model)) for model in MODELS]}
        for (new, batch), found in sizes.items()
    ]
    return {"measures": MEASURES, "rows": rows, "note": _note(sizes)}


def running_lines(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the card: ``size`` in words, and ``values``, for each of the three models its speed and memory."""
    return [
        {
            "size": f"batch {batch}, {new} new tokens",
            "values": {model: _short(found.get(model)) for model in MODELS},
        }
        for (new, batch), found in _sizes(models).items()
    ]


def running_drawings(models: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """A drawing for each number of new tokens at which some model was measured with two batches or more."""
    drawings = []
    for new in dict.fromkeys(new for new, _ in _sizes(models)):
        points = cost_points(models, new)
        if any(len(records) > 1 for records in points.values()):
            label = f"Tokens per second and latency against the batch, {new} new tokens."

            def build(narrow: bool, points: Mapping[str, Sequence[Mapping[str, Any]]] = points) -> Figure:
                return cost_curves(points, narrow)

            drawings.append({**for_page(f"cost-{new}-tokens", label, out, build), "new_tokens": new})
    return drawings


def cost_points(models: Mapping[str, Any], new_tokens: int) -> dict[str, list[Mapping[str, Any]]]:
    """Of each model the records that were measured with so many new tokens, the smallest batch first."""
    of_models: dict[str, list[Mapping[str, Any]]] = {model: [] for model in MODELS}
    for (new, _), found in sorted(_sizes(models).items()):
        for model, record in found.items():
            if new == new_tokens and record["outcome"] == "measured":
                of_models[model].append(record)
    return {model: records for model, records in of_models.items() if records}


def cost_curves(points: Mapping[str, Sequence[Mapping[str, Any]]], narrow: bool = False) -> Figure:
    """Draw tokens per second and latency in seconds against the batch, both axes logarithmic, a line for each model.

    ``points``: records of results.json for each model, as ``cost_points`` gives them. The bars go from the fastest run
    to the slowest. A line ends where the next batch did not fit.
    """
    figure, axes = canvas(*((2, 1) if narrow else (1, 2)), (NARROW, 5.2) if narrow else (WIDE, 3.1))
    batches = sorted({record["batch"] for records in points.values() for record in records})
    for panel, words in zip(axes, ("generated tokens per second", "latency of a run (seconds)"), strict=True):
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator(batches))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_xlabel("sequences generated together")
        title(panel, words)
    lines = []
    for model, records in points.items():
        produced = [record["batch"] * record["new_tokens"] for record in records]
        seconds = [record["latency_seconds"] for record in records]
        speeds = [
            {"median": made / one["median"], "lowest": made / one["highest"], "highest": made / one["lowest"]}
            for made, one in zip(produced, seconds, strict=True)
        ]
        lines.append(_draw(axes[0], model, records, speeds, "speed"))
        _draw(axes[1], model, records, seconds, "latency")
    for panel in axes:
        ends = [value for line in panel.get_lines() for value in line.get_ydata()]
        spans = [y for one in panel.collections for segment in one.get_segments() for _, y in segment]
        low, high = min([*ends, *spans]), max([*ends, *spans])
        room = max(high / low, 2.0) ** 0.1
        log_scale(panel, low / room, high * room)
    legend(figure, lines, len(lines))
    return figure


def _draw(
    axes: Axes, model: str, records: Sequence[Mapping[str, Any]], values: Sequence[Mapping[str, float]], what: str
) -> Any:
    """One model's line and the bars of its spread; gives the line, for the legend."""
    colour, marker, style = LOOKS[model]
    batches = [record["batch"] for record in records]
    lows, highs = ([value[end] for value in values] for end in ("lowest", "highest"))
    axes.vlines(batches, lows, highs, color=COLOURS[colour], linewidth=1, alpha=0.6)
    (line,) = axes.plot(
        batches,
        [value["median"] for value in values],
        color=COLOURS[colour],
        linestyle=style,
        marker=marker,
        # Pruned and regrown have one architecture, and lie on each other: the larger one shows behind the other.
        markersize=7 if model == "pruned" else 4,
        linewidth=1.7,
        label=model,
        gid=f"{what}-{model}",
    )
    return line


def _sizes(models: Mapping[str, Any]) -> Sizes:
    """(new tokens, batch) -> model -> its record."""
    sizes: Sizes = {}
    for model in MODELS:
        for record in models.get(model, {}).get("cost") or ():
            sizes.setdefault((record["new_tokens"], record["batch"]), {})[model] = record
    return sizes


def _group(record: Mapping[str, Any] | None) -> dict[str, Any]:
    if record is None or record["outcome"] != "measured":
        return {"cells": [], "instead": notation.MISSING if record is None else record["outcome"]}
    first, further = record["first_token_seconds"]["median"], record["further_token_seconds"]["median"]
    memory = record.get("peak_memory_bytes")
    cells = [
        notation.significant(record["tokens_per_second"], 3),
        notation.duration(first),
        _short_time(further),
        notation.memory(memory) if memory is not None else notation.MISSING,
    ]
    return {"cells": cells, "instead": ""}


def _short(record: Mapping[str, Any] | None) -> str:
    """Speed and memory in one cell."""
    group = _group(record)
    if group["instead"]:
        return group["instead"]
    speed, _, _, memory = group["cells"]
    return f"{speed} tokens/s" + ("" if record.get("peak_memory_bytes") is None else f", {memory}")


def _short_time(seconds: float) -> str:
    """As ``notation.duration``, with the digits that milliseconds of a single token need."""
    return (
        f"{notation.significant(1000 * seconds, 3)}{notation.SPACE}ms"
        if seconds < 0.9995
        else notation.duration(seconds)
    )


def _note(sizes: Sizes) -> str:
    """How it was measured, in a few sentences."""
    records = [one for found in sizes.values() for one in found.values()]
    measured = [one for one in records if one["outcome"] == "measured"]
    words = [f"Prompts of {records[0]['prompt_tokens']} tokens of held-out text, continued greedily."]
    if measured:
        one = measured[0]
        runs = "a single run, too little to compare speeds" if one["repeats"] == 1 else f"{one['repeats']} runs"
        words.append(f"Times are medians of {runs}, after {one['warm_up']} to warm up; the models took turns.")
        words.append("The first token takes the time in which the prompt is read.")
        of = {
            "gpu": "Memory: a model's weights, and the most that a run allocated beside them on the GPU.",
            "process": "Memory: what a process of its own had resident at most while it generated, above what it had "
            "before it loaded the weights.",
        }.get(one.get("peak_memory_of"))
        words += [of] if of else []
    if len(measured) < len(records):
        words.append("What takes no less memory than a size that did not fit was not tried.")
    return " ".join(words)
