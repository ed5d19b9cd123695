"""Tasks on the page and the card: figures with their errors, what changed, and whether that is more than chance.

Multiple choice comes back soon after blocks were removed; what a model writes by itself, sums and steps of reasoning,
does not. The two kinds stand apart, each under its own name, so that neither hides the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.reporting import notation
from pipeline.reporting.model_rows import MODELS

#: lm-eval's kinds of output, in words.
KINDS = {"multiple_choice": "choices", "loglikelihood": "choices", "generate_until": "generated"}
WORDS = {"choices": "Multiple choice", "generated": "Generated answers", "other": "Other"}
#: Below this a difference is taken for more than chance.
SIGNIFICANT = 0.05


def task_rows(models: Mapping[str, Any], paired: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """A row for each task, choices first and what is generated last, with the mean of the seven behind its tasks.

    A row holds ``task``, ``kind`` (choices, generated, other), ``metric``, ``note`` (items, shots), ``values`` (by
    model) and ``cells``, one for each model: ``text``, ``error``, and ``compared``, its differences from dense and, for
    the regrown model, from the pruned one, in words, each with whether it is more than chance.
    """
    found: dict[str, dict[str, Any]] = {}
    for model in MODELS:
        for task, entry in (models.get(model, {}).get("tasks") or {}).items():
            found.setdefault(task, {})[model] = entry
    rows = [_row(task, entries, paired or {}) for task, entries in found.items()]
    means = {model: mean for model in MODELS if (mean := models.get(model, {}).get("task_mean"))}
    if means:
        first = next(iter(means.values()))
        row = _cells(means) | {"task": f"mean of {len(first['of'])}", "kind": "choices", "metric": "", "note": ""}
        rows.append(row)
    order = list(WORDS)
    return sorted(rows, key=lambda row: order.index(row["kind"]))


def _row(task: str, entries: Mapping[str, Any], paired: Mapping[str, Any]) -> dict[str, Any]:
    one = next(iter(entries.values()))
    shots = f", {one['shots']} shots" if one.get("shots") else ""
    row = _cells(entries)
    for cell, model in zip(row["cells"], MODELS, strict=True):
        tests = {other: paired.get(f"{model} - {other}", {}).get(task) for other in MODELS}
        found = [_words(test, "" if other == "dense" else f"on {other} ") for other, test in tests.items() if test]
        cell["compared"] = (found if one.get("share", True) else []) or cell["compared"]
    return row | {
        "task": task,
        "kind": KINDS.get(one.get("output"), "other") if one.get("share", True) else "other",
        "metric": one["metric"],
        "note": f"{one['items']:,} items{shots}",
    }


def _cells(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Values and cells of what was measured for each model."""
    values = {model: entry["value"] for model, entry in entries.items()}
    dense, cells = values.get("dense"), []
    for model in MODELS:
        entry = entries.get(model)
        if entry is None:
            cells.append({"text": notation.MISSING, "error": "", "compared": [], "missing": True})
            continue
        known, error = model != "dense" and dense is not None, entry.get("stderr")
        if entry.get("share", True):
            text, spread = f"{100 * entry['value']:.1f}", "" if error is None else f"± {100 * error:.1f}"
            compared = [{"text": points(entry["value"] - dense), "real": False}] if known else []
        else:
            # A perplexity, say: as it is, and not in points of a hundred.
            text, compared = notation.significant(entry["value"]), []
            spread = "" if error is None else f"± {notation.significant(error, 2)}"
        cells.append({"text": text, "error": spread, "compared": compared, "missing": False})
    return {"values": values, "cells": cells}


def points(difference: float) -> str:
    """A difference of shares in points of a hundred, with its sign: ``-12.3``."""
    if abs(difference) < 0.0005:
        return "same"
    return f"{'+' if difference > 0 else notation.MINUS}{100 * abs(difference):.1f}"


def _words(test: Mapping[str, Any], other: str) -> dict[str, Any]:
    """A paired test in words: ``on pruned +3.0, p 0.21``; ``real``: more than chance."""
    p = test["p"]
    probability = "p < 0.001" if p < 0.001 else f"p {p:.2g}"
    return {"text": f"{other}{points(test['difference'])}, {probability}", "real": p < SIGNIFICANT}


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """What came back of each kind of task, a sentence for each: means over its tasks, of all three models."""
    said = []
    for kind in ("choices", "generated"):
        own = [row for row in rows if row["kind"] == kind and row["metric"]]
        if not own or any(model not in row["values"] for row in own for model in MODELS):
            continue
        dense, pruned, regrown = (100 * math.fsum(row["values"][model] for row in own) / len(own) for model in MODELS)
        over = "" if len(own) == 1 else f", mean of {len(own)} tasks"
        said.append(f"{WORDS[kind]}{over}: {dense:.1f} dense, {pruned:.1f} pruned, {regrown:.1f} regrown.")
    return said
