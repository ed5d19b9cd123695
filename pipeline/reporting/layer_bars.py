"""Bars of block importance: one for each block, with the interval of its score, large or small."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.errors import RegrowError
from pipeline.reporting import notation
from pipeline.reporting.drawing import COLOURS, NARROW, WIDE, canvas, legend, log_scale
from pipeline.reporting.drawing import title as panel_title
from pipeline.reporting.intervals import paired_ratio
from pipeline.reporting.numbers import finite

_HATCH = {"kept": None, "removed": "/////", "protected": "---"}  # dots would cost 250 kB of SVG each
_LOG_SPREAD = 20  # largest over smallest score above which bars go on a log scale
STATES = ("kept", "removed", "protected")


def block_importance(
    scores: Mapping[str, Any],
    removed: Sequence[int],
    protected: Sequence[int],
    criterion: str,
    narrow: bool = False,
) -> Figure:
    """Draw the bars of one criterion of a parsed scores.json, as ``draw_layer_bars`` does.

    Raises RegrowError if the criterion is absent or an index is not a block.
    """
    entry = scores["criteria"].get(criterion)
    if entry is None:
        known = ", ".join(sorted(scores["criteria"])) or "none"
        raise RegrowError(f"scores.json has no criterion {criterion!r}; score it, or draw one of: {known}")
    label = None if criterion == "ppl" else f"{criterion}: {_direction(entry)}"
    return draw_layer_bars(entry, removed=removed, protected=protected, label=label, narrow=narrow)


def draw_layer_bars(
    entry: Mapping[str, Any],
    *,
    removed: Sequence[int] = (),
    protected: Sequence[int] = (),
    title: str | None = None,
    label: str | None = None,
    narrow: bool = False,
) -> Figure:
    """Draw one bar per block of the dense model, with removed, kept and protected blocks told apart.

    >>> draw_layer_bars(scores["ppl"], removed=[3, 4], protected=[0, 1, 7]).savefig("blocks.png")

    ``entry`` is one criterion's of ``score_blocks`` or scores.json; ``removed`` and ``protected`` are block indices
    of the dense model; ``label`` stands at the axis of scores. Where the entry has ``interval``, a whisker spans the
    95% interval of each score. Where it has ``dense``, as ``ppl`` does, bars and whiskers are what the score
    adds to that, the perplexity with every block in place, and the axis ends above the blocks that may go: a protected
    block that is beyond it is cut off there, with its value and interval in words. Otherwise the axis is logarithmic
    where all scores are positive and the largest exceeds 20 times the smallest. A score that is not finite reaches the
    top and is marked so. Raises RegrowError if an index is not a block.
    """
    if "scores" not in entry:
        raise RegrowError('layer bars: one criterion is wanted, scores["ppl"], got ' + ", ".join(map(str, entry)))
    values = [float(value) if finite(value) else math.nan for value in entry["scores"]]
    states = _states(len(values), removed, protected)
    dense = entry.get("dense") if finite(entry.get("dense")) else None
    figure, (axes,) = canvas(1, 1, (NARROW, 3.3) if narrow else (WIDE, 3.8))
    if dense is not None:
        spans, values = _added_spans(entry, values, dense), [value - dense for value in values]
        bottom = _scale_to_free(axes, values, spans, states)
    else:
        spans = _spans(entry, values)
        bottom = _scale(axes, values, [end for span in spans.values() for end in span])
    top = axes.get_ylim()[1]
    for block, (value, state) in enumerate(zip(values, states, strict=True)):
        (bar,) = axes.bar(block, min(value, top) - bottom if finite(value) else top - bottom, bottom=bottom, width=0.78)
        bar.update(_look(state))
        bar.set_gid(f"block-{block}-{state}")
        bar.set_hatch_linewidth(0.8)
    _name_what_is_cut(axes, values, spans)
    keys: list[Any] = []
    for state in STATES:
        if state in states:
            keys.append(Patch(label=f"{state} ({states.count(state)})", **_look(state)))
            keys[-1].set_hatch_linewidth(0.8)
    spans = {block: (low, min(high, top)) for block, (low, high) in spans.items() if values[block] <= top}
    if spans:
        _draw_spans(axes, spans, 1.3)
        keys.append(Line2D([], [], color=COLOURS["ink"], linewidth=1.3, label="95% interval"))
    if dense is not None:
        axes.axhline(0, color=COLOURS["muted"], linewidth=0.8, gid="dense-reference")
        label = label or "perplexity that its absence adds"
    axes.set_ylabel(label or f"score: {_direction(entry)}")
    axes.set_xlabel("block of the dense model")
    axes.set_xlim(-0.8, len(values) - 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7 if narrow else 16, integer=True, steps=[1, 2, 5, 10]))
    if title:
        panel_title(axes, title)
    legend(figure, keys, 2 if narrow else 5)
    return figure


def _added_spans(entry: Mapping[str, Any], values: Sequence[float], dense: float) -> dict[int, tuple[float, float]]:
    """The 95% interval of what each block's absence adds to the perplexity, on the same sequences; where the losses of
    each were not recorded, that of the score less ``dense``."""
    alone, without = entry.get("dense_sequence_losses"), entry.get("sequence_losses")
    if not alone or not without:
        return {block: (low - dense, high - dense) for block, (low, high) in _spans(entry, values).items()}
    spans = {}
    for block, losses in enumerate(without):
        ratio = paired_ratio(losses, alone)
        if ratio is not None and math.isfinite(values[block]):
            spans[block] = (dense * (ratio[0] - 1), dense * (ratio[1] - 1))
    return spans


def _scale_to_free(
    axes: Axes, values: Sequence[float], spans: Mapping[int, tuple[float, float]], states: Sequence[str]
) -> float:
    """Set the axis so that every block that is not protected is inside with its whisker, but for one that is far above
    its like; return where the bars stand. Where every block is protected, all are inside."""
    known = [block for block, value in enumerate(values) if math.isfinite(value)]
    free = [block for block in known if states[block] != "protected"] or known
    usual = _LOG_SPREAD * abs(median([values[block] for block in free])) if free else 0.0
    inside = [block for block in free if values[block] <= usual] or free
    ends = [values[block] for block in inside] + [end for block in inside for end in spans.get(block, ())]
    axes.set_ylim(min([*ends, 0.0]) * 1.1, max([*ends, 0.0]) * 1.08 or 1.0)
    return 0.0


def _name_what_is_cut(axes: Axes, values: Sequence[float], spans: Mapping[int, tuple[float, float]]) -> None:
    """Where a bar ends at the top for want of room its value and interval, or that it is not finite; where a whisker
    alone does, how far it goes."""
    top = axes.get_ylim()[1]
    for block, value in enumerate(values):
        low, high = spans.get(block, (value, value))
        if not math.isfinite(value) or high > top:
            text, end = notation.perplexity(value), notation.perplexity(high)
            if math.isfinite(value) and value <= top:
                text = f"\u2191 to {end}"
            elif math.isfinite(value):
                text = f"\u2191 {text}" + (f" ({notation.perplexity(low)} to {end})" if block in spans else "")
            # Upright: neighbours are often cut both.
            axes.annotate(
                text,
                (block, top),
                (0, -3),
                textcoords="offset points",
                ha="center",
                va="top",
                rotation=90,
                fontsize=7,
                color=COLOURS["ink"],
                bbox={"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )


def small_bars(entry: Mapping[str, Any], *, removed: Sequence[int] = (), protected: Sequence[int] = ()) -> Figure:
    """The same bars without legend or labels, to stand beside those of other criteria.

    The bars of one state are one outline, so that a model of 80 blocks costs no more of the page than one of 12.
    """
    if "scores" not in entry:
        raise RegrowError('layer bars: one criterion is wanted, scores["ppl"], got ' + ", ".join(map(str, entry)))
    values = [float(value) if finite(value) else math.nan for value in entry["scores"]]
    states = _states(len(values), removed, protected)
    spans = _spans(entry, values)
    figure, (axes,) = canvas(1, 1, (3.4, 1.35))
    bottom = _scale(axes, values, [end for span in spans.values() for end in span])
    top = axes.get_ylim()[1]
    for state in STATES:
        corners = [
            Outline([(b - 0.39, bottom), (b - 0.39, high), (b + 0.39, high), (b + 0.39, bottom)], closed=False)
            for b, high in enumerate(value if math.isfinite(value) else top for value in values)
            if states[b] == state
        ]
        if corners:
            look = _look(state) | {"hatch": None, "linewidth": 0.3}
            axes.add_patch(PathPatch(Outline.make_compound_path(*corners), gid=f"bars-{state}", **look))
    if spans:
        _draw_spans(axes, spans, 0.8)
    axes.set_xlim(-0.8, len(values) - 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
        if top > 9999:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: notation.tokens(value)))
    axes.tick_params(pad=3)
    return figure


def _states(total: int, removed: Sequence[int], protected: Sequence[int]) -> list[str]:
    for what, indices in (("removed", removed), ("protected", protected)):
        strangers = [index for index in indices if not 0 <= index < total]
        if strangers:
            raise RegrowError(
                f"{what} blocks {strangers} are not among the {total} blocks of scores.json: "
                "the prune record and the scores belong to different models"
            )
    return ["removed" if b in removed else "protected" if b in protected else "kept" for b in range(total)]


def _direction(entry: Mapping[str, Any]) -> str:
    return f"higher is {entry.get('higher_is', 'more important')}"


def _spans(entry: Mapping[str, Any], values: Sequence[float]) -> dict[int, tuple[float, float]]:
    """The intervals that can be drawn, by block."""
    spans = {}
    for block, span in enumerate(entry.get("interval") or ()):
        if block < len(values) and span and all(finite(end) for end in span) and math.isfinite(values[block]):
            spans[block] = (span[0], span[1])
    return spans


def _draw_spans(axes: Axes, spans: Mapping[int, tuple[float, float]], width: float) -> None:
    """All whiskers as one line with gaps, on a seam in the paper's colour that sets them off the bars."""
    x = [value for block in spans for value in (block, block, math.nan)]
    y = [value for low, high in spans.values() for value in (low, high, math.nan)]
    axes.plot(x, y, color=COLOURS["paper"], linewidth=width + 1.5, solid_capstyle="butt", gid="interval-seams")
    axes.plot(x, y, color=COLOURS["ink"], linewidth=width, solid_capstyle="butt", gid="intervals")


def _scale(axes: Axes, values: Sequence[float], ends: Sequence[float]) -> float:
    """Set the axis of scores so that every bar and whisker is inside, and return where the bars stand."""
    known = [value for value in values if math.isfinite(value)]
    everything = [*known, *ends]
    if known and min(everything) > 0 and max(known) > _LOG_SPREAD * min(known):
        floor, top = min(everything), max(everything)
        # Bars on a log axis have no natural foot: leave the smallest a visible stub.
        bottom = floor / (top / floor) ** 0.09
        log_scale(axes, bottom, top * (top / floor) ** 0.05)
        return bottom
    axes.set_ylim(min([*everything, 0.0]) * 1.05, max([*everything, 0.0]) * 1.08 or 1.0)
    return 0.0


def _look(state: str) -> dict[str, Any]:
    """Fill, edge and hatching of a block's bar."""
    edge = COLOURS["kept"] if state == "kept" else COLOURS[f"{state}-line"]
    return {"facecolor": COLOURS[state], "edgecolor": edge, "hatch": _HATCH[state], "linewidth": 0.8}
