"""What prune/comparison.json says of the ways to choose blocks: rows of tables, an overlap, and plain sentences.

A way is a criterion or control (``by``) with its selection, with or without linear maps; it has a set of blocks and
the perplexities of the pruned, untrained model at each number of removed blocks. Held-out text decides where it was
measured; calibration text is what some of the ways were chosen on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reporting import notation
from pipeline.reporting.curves import way_words
from pipeline.reporting.identity import rows_words, weight_words
from pipeline.reporting.intervals import Interval, mean_interval, paired_ratio
from pipeline.reporting.numbers import finite

SELECTIONS = ("one-shot", "greedy", "contiguous", "given", "control")
TEXTS = {"held_out": "held-out", "calibration": "calibration"}


def measured_texts(comparison: Mapping[str, Any]) -> list[str]:
    """`held_out` first where it was measured, then `calibration`."""
    sets = comparison.get("sets") or ()
    return [
        text
        for text in TEXTS
        if comparison.get(text) is not None or any(finite((one.get("perplexity") or {}).get(text)) for one in sets)
    ]


def measured_on(comparison: Mapping[str, Any]) -> str:
    """On what and with which weights, as far as it was recorded: `32 held-out rows of 256 tokens (BOS policy: every,
    sha256 46c4be77); 10 calibration sequences of 128 tokens; the dense model's weights: f7b8bfce, bfloat16`."""
    counted = (("held_out", "rows"), ("calibration", "sequences"))
    parts = [rows_words(comparison.get(text) or {}, many, TEXTS[text]) for text, many in counted]
    weights = weight_words(comparison.get("model") or {})
    return "; ".join([part for part in parts if part] + ([f"the dense model's weights: {weights}"] if weights else []))


def ways_of(comparison: Mapping[str, Any], prune: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each way once, controls last: ``by``, ``selection``, ``linear_map``, ``chosen``, ``words`` and ``sets``.

    ``sets`` maps a number of removed blocks to its entry of comparison.json. ``chosen`` is whether this run's blocks
    were chosen that way; ``map_left_out`` where the run's linear maps were not compared, so that the numbers are those
    of the blocks simply left out.
    """
    ways: dict[tuple, dict[str, Any]] = {}
    for one in comparison.get("sets") or ():
        key = (one["by"], one["selection"], bool(one.get("linear_map")))
        way = ways.setdefault(key, dict(zip(("by", "selection", "linear_map"), key, strict=True)) | {"sets": {}})
        way["sets"][one["remove"]] = one
    # An explicit list has no criterion and no selection.
    plain = (prune.get("criterion") or "config", prune.get("selection") or "given", False)
    mapped = (*plain[:2], True)
    chosen = mapped if prune.get("linear") and mapped in ways else plain
    for key, way in ways.items():
        way["words"] = way_words(way)
        way["chosen"] = key == chosen or (way["selection"] == "control" and way["by"] == prune.get("criterion"))
        way["map_left_out"] = bool(way["chosen"] and prune.get("linear") and not way["linear_map"])
    order, names = list(SELECTIONS), list(dict.fromkeys(by for by, _, _ in ways))
    return sorted(
        ways.values(),
        key=lambda way: (
            way["selection"] == "control",
            names.index(way["by"]),
            order.index(way["selection"]) if way["selection"] in order else len(order),
            way["linear_map"],
        ),
    )


def counts_of(comparison: Mapping[str, Any]) -> list[tuple[int, float | None]]:
    """Numbers of removed blocks that all ways share, each with its share of all blocks, rising."""
    removals, shares = comparison.get("removals") or (), comparison.get("shares") or ()
    return sorted((count, shares[i] if i < len(shares) else None) for i, count in enumerate(removals))


def perplexity_of(way: Mapping[str, Any], count: int, text: str) -> float | None:
    """The perplexity of a way at a count; None where there is none or it was not finite."""
    value = ((way["sets"].get(count) or {}).get("perplexity") or {}).get(text)
    return value if finite(value) else None


def row_losses_of(way: Mapping[str, Any], count: int, text: str) -> list[float] | None:
    """The losses of the rows behind that perplexity, in nats per target; None where they were not recorded."""
    return ((way["sets"].get(count) or {}).get("row_losses") or {}).get(text)


def ratio_of(way: Mapping[str, Any], other: Mapping[str, Any], count: int, text: str) -> Interval | None:
    """The 95 % interval of a way's perplexity over another's on the same rows; None where it is not known."""
    mine, theirs = (row_losses_of(one, count, text) for one in (way, other))
    return paired_ratio(mine, theirs) if mine and theirs else None


def points_of(way: Mapping[str, Any], comparison: Mapping[str, Any], text: str) -> list[tuple[int, float | None]]:
    """The way's points at the shared counts, for the drawing."""
    return [(count, perplexity_of(way, count, text)) for count, _ in counts_of(comparison) if count in way["sets"]]


def perplexity_table(comparison: Mapping[str, Any], ways: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``columns`` (count, share, planned), ``texts`` and ``rows`` (way, cells of text and best) of the big table."""
    texts, columns = measured_texts(comparison), []
    rows: list[dict[str, Any]] = [{"way": way, "cells": []} for way in ways]
    for count, share in counts_of(comparison):
        if not any(count in way["sets"] for way in ways):
            continue
        columns.append({"count": count, "share": share, "planned": count == comparison.get("planned")})
        for text in texts:
            values = [perplexity_of(way, count, text) for way in ways]
            best = min((value for value in values if value is not None), default=None)
            for row, value in zip(rows, values, strict=True):
                there, losses = count in row["way"]["sets"], row_losses_of(row["way"], count, text)
                row["cells"].append(
                    {
                        "text": notation.perplexity(value) if there else "\u2013",
                        "spread": notation.between(mean_interval(losses)) if value is not None and losses else "",
                        "best": value is not None and value == best,
                        "missing": value is None,
                        "planned": columns[-1]["planned"],
                    }
                )
    shown = [row for row in rows if any(count["count"] in row["way"]["sets"] for count in columns)]
    return {"columns": columns, "texts": [TEXTS[text] for text in texts], "rows": shown}


def verdict(comparison: Mapping[str, Any], ways: Sequence[Mapping[str, Any]], prune: Mapping[str, Any]) -> list[str]:
    """Sentences: which way is lowest at the planned count, and how the chosen one stands beside the controls."""
    count, texts = comparison.get("planned"), measured_texts(comparison)
    there = [way for way in ways if count in way["sets"]]
    if not there or not texts:
        return []
    text = texts[0]
    on = f"{TEXTS[text]} perplexity"
    measured = [(value, way) for way in there if (value := perplexity_of(way, count, text)) is not None]
    known = sorted(measured, key=lambda one: (one[0], one[1]["words"]))
    if not known:
        return [f"With {count} blocks removed no way of choosing left a finite {on}."]
    first = [way["words"] for value, way in known if value == known[0][0]]
    sentence = f"With {count} blocks removed, the lowest {on} before training is "
    sentence += f"{notation.perplexity(known[0][0])}, by {notation.listed(first, '; ')}"
    if len(first) < len(known):
        value, way = known[len(first)]
        sentence += f". The next is {notation.perplexity(value)}, by {way['words']}"
        sentence += _apart(ratio_of(way, known[0][1], count, text))
    sentences = [sentence + "."]
    if text == "calibration":
        sentences.append("Held-out text was not measured, and calibration text is what some ways were chosen on.")
    return [*sentences, _beside_the_controls(there, count, text, bool(prune.get("criterion")))]


def _beside_the_controls(there: Sequence[Mapping[str, Any]], count: int, text: str, by_criterion: bool) -> str:
    """One sentence: whether this run's way is below, level with or above each control at the planned count."""
    number = notation.perplexity
    chosen = next((way for way in there if way["chosen"]), None)
    if chosen is None:
        why = "were chosen in a way that is not among those compared" if by_criterion else "were given"
        return f"This run's blocks {why}."
    value = perplexity_of(chosen, count, text)
    if chosen["selection"] == "control":
        return f"This run's blocks were chosen by the control {chosen['by']}: {number(value)}."
    sentence = f"This run chose by {chosen['words']}: {number(value)}"
    sentence += " without its linear maps" if chosen["map_left_out"] else ""
    controls = {way["by"]: way for way in there if way["selection"] == "control"}
    if not controls:
        return f"{sentence}; no control was measured there."
    places: dict[str, list[str]] = {"below": [], "level with": [], "not told apart from": [], "above": []}
    mine = math.inf if value is None else value
    for name, way in controls.items():
        measured, ratio = perplexity_of(way, count, text), ratio_of(way, chosen, count, text)
        other = math.inf if measured is None else measured
        place = "below" if mine < other else "above" if mine > other else "level with"
        if ratio is not None and ratio[0] <= 1 <= ratio[1] and place != "level with":
            place = "not told apart from"
        places[place].append(f"{name} ({number(measured)})")
    parts = [f"{place} {notation.listed(names)}" for place, names in places.items() if names]
    whole = "every control: " if len(parts) == 1 and len(controls) > 1 else "the control " if len(controls) == 1 else ""
    if whole:
        parts = [next(f"{place} {whole}{notation.listed(names)}" for place, names in places.items() if names)]
    return f"{sentence}, {', and '.join(parts)}."


def _apart(ratio: Interval | None) -> str:
    """Whether a perplexity that is so many times another's is told apart from it; empty where that is not known."""
    if ratio is None:
        return ""
    words = f"{notation.between(ratio)} times that, at 95{notation.SPACE}%"
    return f": {words}" if ratio[0] > 1 else f", which these rows do not tell apart ({words})"


def best_control(comparison: Mapping[str, Any] | None, prune: Mapping[str, Any]) -> dict[str, Any] | None:
    """The control of lowest perplexity at the planned count, or None where none was measured.

    ``by``, ``text``, ``value`` and ``count``; of this run's way ``chosen``, its perplexity there (None where it was not
    measured), and ``map_left_out`` as in ``ways_of``.
    """
    texts = measured_texts(comparison or {})
    if not texts:
        return None
    count, ways = comparison.get("planned"), ways_of(comparison, prune)
    values = [(perplexity_of(way, count, texts[0]), way["by"]) for way in ways if way["selection"] == "control"]
    known = sorted(pair for pair in values if pair[0] is not None)
    if not known:
        return None
    chosen = next((way for way in ways if way["chosen"] and way["selection"] != "control"), None)
    mine = perplexity_of(chosen, count, texts[0]) if chosen and count in chosen["sets"] else None
    return {
        "by": known[0][1],
        "text": TEXTS[texts[0]],
        "value": known[0][0],
        "count": count,
        "chosen": mine,
        "map_left_out": bool(chosen and chosen["map_left_out"]),
    }


def overlap(comparison: Mapping[str, Any], ways: Sequence[Mapping[str, Any]], blocks: int) -> dict[str, Any] | None:
    """Shared blocks of the sets at the planned count: ``rows`` (number, way, blocks, cells), ``expected`` by chance.

    Two sets of k drawn from the free blocks share k x k / free on average. Linear maps change no set, so each set
    stands once. None where fewer than two ways have one.
    """
    count = comparison.get("planned")
    there = [way for way in ways if count in way["sets"]]
    there = [
        way
        for way in there
        if not (
            way["linear_map"]
            and any((o["by"], o["selection"], o["linear_map"]) == (way["by"], way["selection"], False) for o in there)
        )
    ]
    if len(there) < 2:
        return None
    sets = [set(way["sets"][count]["blocks"]) for way in there]
    free = blocks - len(set(comparison.get("protected") or ()))
    rows = [
        {
            "number": number,
            "way": way,
            "words": way["words"].removesuffix(" with a linear map"),
            "blocks": sorted(mine),
            "cells": [{"shared": len(mine & other), "share": len(mine & other) / max(count, 1)} for other in sets],
        }
        for number, (way, mine) in enumerate(zip(there, sets, strict=True), start=1)
    ]
    return {"count": count, "free": free, "expected": count * count / free if free > 0 else None, "rows": rows}
