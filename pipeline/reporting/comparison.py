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
from pipeline.reporting.drawing import finite

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
    """`32 held-out rows of 256 tokens; 10 calibration sequences of 128 tokens`, as far as it was recorded."""
    parts = []
    for text, many in (("held_out", "rows"), ("calibration", "sequences")):
        record = comparison.get(text) or {}
        if record.get(many) is not None:
            length = f" of {record['length']} tokens" if record.get("length") is not None else ""
            word = many.removesuffix("s") if record[many] == 1 else many
            parts.append(f"{record[many]} {TEXTS[text]} {word}{length}")
    return "; ".join(parts)


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
                there = count in row["way"]["sets"]
                row["cells"].append(
                    {
                        "text": notation.perplexity(value) if there else "\u2013",
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
    known = sorted(
        (perplexity_of(way, count, text), way["words"]) for way in there if perplexity_of(way, count, text) is not None
    )
    if not known:
        return [f"With {count} blocks removed no way of choosing left a finite {on}."]
    first = [words for value, words in known if value == known[0][0]]
    sentence = f"With {count} blocks removed, the lowest {on} before training is "
    sentence += f"{notation.perplexity(known[0][0])}, by {_listed(first, '; ')}"
    if len(first) < len(known):
        value, words = known[len(first)]
        sentence += f". The next is {notation.perplexity(value)}, by {words}"
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
    controls = {way["by"]: perplexity_of(way, count, text) for way in there if way["selection"] == "control"}
    if not controls:
        return f"{sentence}; no control was measured there."
    places: dict[str, list[str]] = {"below": [], "level with": [], "above": []}
    mine = math.inf if value is None else value
    for name, measured in controls.items():
        other = math.inf if measured is None else measured
        place = "below" if mine < other else "above" if mine > other else "level with"
        places[place].append(f"{name} ({number(measured)})")
    parts = [f"{place} {_listed(names)}" for place, names in places.items() if names]
    whole = "every control: " if len(parts) == 1 and len(controls) > 1 else "the control " if len(controls) == 1 else ""
    if whole:
        parts = [next(f"{place} {whole}{_listed(names)}" for place, names in places.items() if names)]
    return f"{sentence}, {', and '.join(parts)}."


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


def greedy_table(comparison: Mapping[str, Any], prune: Mapping[str, Any]) -> dict[str, Any] | None:
    """Greedy beside one-shot by ppl, for every k: ``rows``, ``texts`` and a ``sentence``; None without greedy.

    Without comparison.json the rounds of prune.json alone are there, with calibration perplexity.
    """
    ways = {way["selection"]: way for way in ways_of(comparison, {}) if way["by"] == "ppl" and not way["linear_map"]}
    greedy, plain = ways.get("greedy"), ways.get("one-shot")
    if greedy is None or plain is None:
        rounds = prune.get("greedy") or ()
        rows = [
            {
                "k": k,
                "block": one["removed"],
                "planned": False,
                "cells": [{"text": notation.perplexity(one.get("perplexity")), "best": False}],
            }
            for k, one in enumerate(rounds, start=1)
        ]
        return {"rows": rows, "texts": ["calibration"], "ways": ["greedy"], "sentence": ""} if rows else None
    texts, rows, signs = measured_texts(comparison), [], {}
    before: set[int] = set()
    for k in sorted(set(greedy["sets"]) & set(plain["sets"])):
        now = set(greedy["sets"][k]["blocks"])
        cells = []
        for text in texts:
            values = [perplexity_of(way, k, text) for way in (greedy, plain)]
            lower = min((value for value in values if value is not None), default=None)
            ties = values[0] == values[1]
            cells += [
                {"text": notation.perplexity(v), "best": v is not None and v == lower and not ties} for v in values
            ]
            mine, other = (math.inf if value is None else value for value in values)
            signs.setdefault(text, {})[k] = (mine > other) - (mine < other)
        rows.append(
            {
                "k": k,
                "block": notation.block_list(list(now - before)),
                "cells": cells,
                "planned": k == comparison.get("planned"),
            }
        )
        before = now
    sentence = _greedy_sentence(signs.get("held_out") or {}, "held_out" in texts, signs.get("calibration") or {})
    return {"rows": rows, "texts": [TEXTS[t] for t in texts], "ways": ["greedy", "one-shot"], "sentence": sentence}


def _greedy_sentence(held_out: Mapping[int, int], measured: bool, calibration: Mapping[int, int]) -> str:
    """Where greedy is lower, higher or level; held-out text decides."""
    optimised = "Calibration perplexity is what greedy lowers round by round, so being lower there says little."
    if not measured:
        low = notation.block_list([k for k, sign in calibration.items() if sign < 0])
        return f"Held-out text was not measured. On calibration text greedy is lower at k = {low}. {optimised}"
    places = {
        word: [k for k, sign in held_out.items() if sign == wanted]
        for word, wanted in (("lower", -1), ("higher", 1), ("level", 0))
    }
    parts = [
        f"{word} at k = {notation.block_list(ks)} ({len(ks)} of {len(held_out)})" for word, ks in places.items() if ks
    ]
    return f"On held-out text greedy has a perplexity that is {_listed(parts)}. {optimised}"


def _listed(parts: Sequence[str], comma: str = ", ") -> str:
    """`a`, `a and b`, `a, b and c`; parts that hold commas themselves stand between semicolons."""
    if comma != ", " and len(parts) > 1:
        return comma.join([*parts[:-1], f"and {parts[-1]}"])
    return " and ".join(filter(None, [comma.join(parts[:-1]), parts[-1]])) if parts else ""
