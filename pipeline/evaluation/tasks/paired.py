"""Two models on the same items: is the difference more than chance?

An item that both answer alike says nothing of it; of the others each is as likely to favour either, if the models are
equally good. Taken is the exact sign test of those counts; for answers that are right or wrong it is McNemar's
(Psychometrika 12, 1947). That errors of single figures overlap says less: most items are easy or hard for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def compare(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Values of the same items for two models, 1 for right and 0 for wrong, or any metric.

    Gives ``difference`` (mean of the first less that of the second), ``better`` and ``worse`` (items for which the
    first one's value is higher, and lower), ``items``, and ``p``: the probability that chance alone splits them so far
    apart, either way.
    """
    better = sum(a > b for a, b in zip(one, other, strict=True))
    worse = sum(a < b for a, b in zip(one, other, strict=True))
    difference = math.fsum(a - b for a, b in zip(one, other, strict=True)) / len(one)
    return {
        "difference": difference,
        "better": better,
        "worse": worse,
        "items": len(one),
        "p": sign_test(better, worse),
    }


def sign_test(better: int, worse: int) -> float:
    """Two-sided p of so many against so many, where each is as likely: exact, by a sum of binomial coefficients."""
    count, fewer = better + worse, min(better, worse)
    tail = ways = 1
    for wins in range(fewer):
        ways = ways * (count - wins) // (wins + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**count)


def compare_models(items: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """By pair ("regrown - pruned") and task. ``items``: by model and task, the values of each item; tasks whose metric
    is none of single items are left out."""
    pairs = (("regrown", "dense"), ("regrown", "pruned"), ("pruned", "dense"))
    return {
        f"{one} - {other}": {task: compare(values, items[other][task]) for task, values in items[one].items() if values}
        for one, other in pairs
        if one in items and other in items
    }
