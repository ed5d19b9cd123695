"""Greedy removal beside one-shot removal by ppl, for every number of blocks: a table and a sentence."""

import math
from collections.abc import Mapping
from typing import Any

from pipeline.reporting import notation
from pipeline.reporting.comparison import TEXTS, measured_texts, perplexity_of, ratio_of, ways_of
from pipeline.reporting.intervals import Interval


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
    texts, rows, places = measured_texts(comparison), [], {}
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
            places.setdefault(text, {})[k] = _place(*values, ratio_of(greedy, plain, k, text))
        rows.append(
            {
                "k": k,
                "block": notation.block_list(list(now - before)),
                "cells": cells,
                "planned": k == comparison.get("planned"),
            }
        )
        before = now
    sentence = _sentence(places.get("held_out") or {}, "held_out" in texts, places.get("calibration") or {})
    return {"rows": rows, "texts": [TEXTS[t] for t in texts], "ways": ["greedy", "one-shot"], "sentence": sentence}


def _place(greedy: float | None, plain: float | None, ratio: Interval | None) -> str:
    """Where greedy's perplexity lies beside the other's; ``ratio`` is the interval of one over the other."""
    mine, other = (math.inf if value is None else value for value in (greedy, plain))
    if mine == other:
        return "level"
    if ratio is not None and ratio[0] <= 1 <= ratio[1]:
        return "not told apart"
    return "lower" if mine < other else "higher"


def _sentence(held_out: Mapping[int, str], measured: bool, calibration: Mapping[int, str]) -> str:
    """Where greedy is lower, higher or neither; held-out text decides."""
    optimised = "Calibration perplexity is what greedy lowers round by round, so being lower there says little."
    if not measured:
        low = notation.block_list([k for k, place in calibration.items() if place == "lower"])
        return f"Held-out text was not measured. On calibration text greedy is lower at k = {low}. {optimised}"
    parts = [
        f"{place} at k = {notation.block_list(there)} ({len(there)} of {len(held_out)})"
        for place in ("lower", "higher", "level", "not told apart")
        if (there := [k for k, found in held_out.items() if found == place])
    ]
    return f"On held-out text greedy has a perplexity that is {notation.listed(parts)}. {optimised}"
