"""What the page shows of the scores: the drawings of each criterion, and how far the choice could have been noise.

Each function takes parsed records and returns None or an empty list where what it needs was not recorded.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.reporting import notation
from pipeline.reporting.comparison import TEXTS, counts_of, measured_texts, points_of, ways_of
from pipeline.reporting.curves import perplexity_lines
from pipeline.reporting.drawing import for_page, save_png, to_svg
from pipeline.reporting.heat_maps import best_start, draw_heat_map, draw_linear_windows, draw_ppl_windows
from pipeline.reporting.layer_bars import block_importance, small_bars
from pipeline.reporting.numbers import finite

_MOST_PAIRS = 3  # unsettled pairs that are named; the rest is counted
# Heat maps that stand open on the page, where they were scored; the others are folded.
_OPEN_MAPS = ("angular_last", "block_influence")


def importance_drawings(scores: Mapping[str, Any] | None, prune: Mapping[str, Any], out: Path) -> dict | None:
    """The bars of the criterion that chose the blocks, or of the first scored where none did."""
    scored = list((scores or {}).get("criteria") or {})
    if not scored:
        return None
    criterion = prune.get("criterion") if prune.get("criterion") in scored else scored[0]
    removed, protected = prune["removed"], prune.get("protected") or []
    label = f"Bars of block importance by {criterion}; removed blocks: {notation.block_list(removed)}."

    def build(narrow: bool) -> Any:
        return block_importance(scores, removed, protected, criterion, narrow)

    whiskers = bool(scores["criteria"][criterion].get("interval"))
    return {"criterion": criterion, "interval": whiskers} | for_page("block-importance", label, out, build)


def other_bars(
    scores: Mapping[str, Any] | None,
    prune: Mapping[str, Any],
    planned: int,
    shown: str | None,
) -> list[dict[str, Any]]:
    """A small drawing for each criterion scored but ``shown``: ``criterion``, ``removed``, ``svg``.

    ``removed`` are the blocks that this criterion would take one by one at the planned count.
    """
    protected = prune.get("protected") or []
    made = []
    for criterion, entry in ((scores or {}).get("criteria") or {}).items():
        if criterion == shown:
            continue
        order = [block for block in entry.get("order") or () if block not in protected]
        removed = sorted(order[:planned])
        label = f"Small bars of block importance by {criterion}; it would remove {notation.block_list(removed)}."
        svg = to_svg(small_bars(entry, removed=removed, protected=protected), f"bars-{criterion}", label)
        made.append(
            {
                "criterion": criterion,
                "removed": removed,
                "svg": Markup(svg),
                "interval": bool(entry.get("interval")),
            }
        )
    return made


def heat_maps(
    scores: Mapping[str, Any] | None, prune: Mapping[str, Any], planned: int, out: Path
) -> list[dict[str, Any]]:
    """Two drawings for each distance, by row and as it is, with its best window of the planned length marked.

    Each has ``criterion``, ``open`` (whether it stands unfolded), ``svgs``, ``note`` and ``file``, the PNG of the map
    by row.
    """
    protected = prune.get("protected") or []
    made = []
    for criterion, entry in ((scores or {}).get("criteria") or {}).items():
        if not isinstance(entry.get("windows"), Sequence) or not entry["windows"]:
            continue
        best, anywhere = best_start(entry, planned, protected), best_start(entry, planned)
        mark = None if best is None else (best, planned)
        label = f"Heat map of {criterion} for windows of n blocks, by start."
        svgs = []
        for normalized, words in ((True, "each row on a scale of its own"), (False, "as measured")):
            figure = draw_heat_map(
                entry, normalized=normalized, title=words, narrow=True, mark=mark, protected=protected
            )
            prefix = f"map-{criterion}-{'rows' if normalized else 'values'}"
            svgs.append(Markup(to_svg(figure, prefix, f"{label} Colours: {words}.")))
            if normalized:
                save_png(figure, out / f"windows-{criterion}.png")
        note = f"No window of {planned} blocks is free of protected blocks."
        if best is not None:
            note = f"Least for {planned} blocks: {_window(best, planned)}, {_at(entry, best, planned)}."
        if anywhere is not None and anywhere != best:
            note += f" Without the protect rule: {_window(anywhere, planned)}, {_at(entry, anywhere, planned)}."
        made.append(
            {
                "criterion": criterion,
                "open": criterion in _OPEN_MAPS,
                "svgs": svgs,
                "note": note,
                "file": f"windows-{criterion}.png",
            }
        )
    if made and not any(one["open"] for one in made):
        made[0]["open"] = True
    return made


def linear_windows(scores: Mapping[str, Any] | None, planned: int) -> dict[str, Any] | None:
    """The lines of the linear replacement by start, for the planned n or the longest that was measured."""
    label = "Error of {n} blocks left out, and replaced by a linear map, by start."
    return _lines_by_start(scores, "linear", planned, draw_linear_windows, label)


def ppl_windows(scores: Mapping[str, Any] | None, planned: int) -> dict[str, Any] | None:
    """The line of the perplexity without each window by start, for the planned n or the longest that was measured."""
    label = "Perplexity without {n} neighbouring blocks, by start."
    return _lines_by_start(scores, "ppl", planned, draw_ppl_windows, label)


def _lines_by_start(
    scores: Mapping[str, Any] | None, criterion: str, planned: int, draw: Callable[..., Figure], label: str
) -> dict[str, Any] | None:
    entry = ((scores or {}).get("criteria") or {}).get(criterion) or {}
    windows = entry.get("windows") or {}
    lengths = sorted(int(n) for n in windows)
    if not lengths:
        return None
    n = planned if planned in lengths else lengths[-1]
    best = windows[str(n)].get("best_start")
    svg = Markup(to_svg(draw(entry, n, mark=best), f"{criterion}-windows", label.format(n=n)))
    return {"n": n, "planned": n == planned, "best": None if best is None else _window(best, n), "svg": svg}


def perplexity_drawings(
    comparison: Mapping[str, Any] | None, prune: Mapping[str, Any], out: Path
) -> dict[str, Any] | None:
    """The lines of perplexity after pruning: ``svgs``, ``files`` and ``text``, what was measured on."""
    texts = measured_texts(comparison or {})
    # At one size alone the table says it all.
    if not texts or len(counts_of(comparison)) < 2:
        return None
    text = texts[0]
    ways = [way | {"points": points_of(way, comparison, text)} for way in ways_of(comparison, prune)]
    dense = (comparison.get("dense") or {}).get(text)
    drawn = perplexity_lines(
        [way for way in ways if way["points"]], text=TEXTS[text], dense=dense if finite(dense) else None
    )
    if not drawn:
        return None
    files = []
    for number, figure in enumerate(drawn, start=1):
        files.append(f"perplexity-after-pruning-{number}.png")
        save_png(figure, out / files[-1])
    label = f"Lines of {TEXTS[text]} perplexity after pruning, by number of removed blocks."
    svgs = [Markup(to_svg(figure, f"after-pruning-{number}", label)) for number, figure in enumerate(drawn)]
    return {"svgs": svgs, "files": files, "text": TEXTS[text]}


def certainty(scores: Mapping[str, Any] | None, prune: Mapping[str, Any], shown: str | None) -> dict | None:
    """How far another draw of calibration sequences would have chosen otherwise: ``noisy`` and ``sentences``.

    ``noisy`` is True where the order of some removed and kept block is within noise, False where it is settled, and
    None where it was not asked.
    """
    sentences, found = [], prune.get("stability")
    if found:
        sentences = _stability_words(found, len(prune["removed"]) + len(prune["kept"]))
        if found.get("removed") is not None and sorted(found["removed"]) != sorted(prune["removed"]):
            set_said = notation.block_list(found["removed"])
            sentences.append(f"This is said of the set that the scores give one by one, {set_said}, not of this run's.")
    entry = ((scores or {}).get("criteria") or {}).get(shown or "") or {}
    pairs = entry.get("noise_pairs")
    if pairs is not None and len(entry["scores"]) > 1:
        told = len(entry["scores"]) - 1
        text = f"In the whole order by {shown}, {len(pairs)} of {told} neighbours are not told apart at "
        text += f"95{notation.SPACE}%"
        if pairs:
            text += f" ({_pairs(pairs, 'and')}): there the order is within noise"
        sentences.append(text + ".")
    if not sentences:
        return None
    return {"noisy": None if not found else bool(found.get("unsettled")), "sentences": sentences}


def _stability_words(found: Mapping[str, Any], blocks: int) -> list[str]:
    """The facts of `stability` as sentences, the plain one first."""
    sequences, unsettled = found.get("sequences"), found.get("unsettled") or []
    drawn = f"{sequences} calibration sequences" if sequences else "the calibration sequences"
    same, stays = notation.percent(found.get("same_set")), notation.percent(found.get("agreement"))
    resampled = (
        f"Drawn again with replacement, {drawn} remove exactly this set in {same} of the draws; "
        f"on average {stays} of the set stays."
    )
    if not unsettled:
        return [
            f"The removed set is outside noise: {drawn} tell every removed block from every free one that is kept, at "
            f"95{notation.SPACE}%.",
            resampled,
        ]
    which = sorted({pair[0] for pair in unsettled})
    words = [
        f"Part of this choice is within noise: {drawn} do not tell removed block{'s' * (len(which) > 1)} "
        f"{notation.block_list(which)} from some of the kept ones at 95{notation.SPACE}%.",
        resampled,
        f"Not told apart (removed, kept), the nearest first: {_pairs(unsettled, 'from')}.",
    ]
    chances = found.get("chances") or []
    doubtful = [b for b in range(min(len(chances), blocks)) if finite(chances[b]) and 0.05 < chances[b] < 0.95]
    if doubtful:
        shares = ", ".join(f"{b} ({notation.percent(chances[b])})" for b in doubtful[:10])
        more = f" and {len(doubtful) - 10} more" if len(doubtful) > 10 else ""
        words.append(f"Removed in some draws and kept in others: {shares}{more}.")
    needed = found.get("sequences_needed")
    if needed is None:
        words.append("The hardest pair does not differ on average: no number of sequences is known to settle it.")
    else:
        words.append(f"About {_round(needed)} sequences would settle the hardest pair, by order of magnitude.")
    words.append(
        "What follows: of each such pair either choice is as good, as far as perplexity without training tells. "
        "More sequences (score.sequences) settle which block goes; they do not promise a better model."
    )
    return words


def linear_rows(prune: Mapping[str, Any]) -> dict[str, Any] | None:
    """The linear replacement of this run: ``folded`` (sentences), ``tokens`` and ``rows`` (label, two perplexities)."""
    linear = prune.get("linear")
    if not linear:
        return None
    measured = linear.get("perplexity") or {}
    known = [text for text in TEXTS if any((side or {}).get(text) is not None for side in measured.values())]
    rows = [
        {"label": label, "cells": [notation.perplexity((measured.get(key) or {}).get(text)) for text in known]}
        for key, label in (("without_map", "Blocks left out"), ("with_map", "Replaced by linear maps"))
    ]
    folded = [
        f"{notation.block_list(run['blocks'])} into block {run['folded_into']}"
        for run in linear.get("runs") or ()
        if run.get("folded_into") is not None
    ]
    return {"folded": folded, "tokens": linear.get("tokens"), "texts": [TEXTS[text] for text in known], "rows": rows}


def _window(start: int, n: int) -> str:
    return f"block {start}" if n == 1 else f"blocks {start}\u2013{start + n - 1}"


def _at(entry: Mapping[str, Any], start: int, n: int) -> str:
    return notation.significant(entry["windows"][start][n - 1], 3)


def _pairs(pairs: Sequence[Sequence[int]], word: str) -> str:
    """`10 from 14; 6 from 8; and 4 more`."""
    named = "; ".join(f"{first} {word} {second}" for first, second in pairs[:_MOST_PAIRS])
    return named + (f"; and {len(pairs) - _MOST_PAIRS} more" if len(pairs) > _MOST_PAIRS else "")


def _round(count: float) -> str:
    """Two significant digits: the estimate bears no more."""
    return f"{float(f'{count:.2g}'):,.0f}"
