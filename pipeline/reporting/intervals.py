"""How far a perplexity could have been another on other rows of the same text: 95 % intervals, alone and compared.

All are over the choice of rows, as if each had been drawn by itself. They say nothing about other texts or seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from pipeline.reporting.numbers import finite

#: Below so many rows nothing is said of their spread.
FEWEST = 3
_NORMAL = 1.959964  # 97.5 % of a normal distribution lie below

Interval = tuple[float, float]


def student(degrees: int) -> float:
    """What 97.5 % of Student's distribution lie below, within 1 % from 4 ``degrees`` of freedom on (Abramowitz and
    Stegun, 26.7.5)."""
    z, n = _NORMAL, degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, start=1))


def perplexity_interval(entry: Mapping[str, Any]) -> Interval | None:
    """Around ``value`` of a perplexity's entry of results.json, from its ``stderr`` and ``rows``; None where that is
    not known. The interval is even in the loss, and so is wider above the perplexity than below it."""
    value, error, rows = entry.get("value"), entry.get("stderr"), entry.get("rows")
    if not (finite(value) and finite(error) and rows is not None and rows >= FEWEST) or value <= 0:
        return None
    return _around(value, student(rows - 1) * error / value)


def mean_interval(losses: Sequence[float]) -> Interval | None:
    """Around the perplexity of rows of as many targets each, from their ``losses`` (nats per target); None for fewer
    than three rows, and where a loss is not finite."""
    error = mean_error(losses)
    return None if error is None else _around(math.exp(fmean(losses)), student(len(losses) - 1) * error)


def ratio_interval(entry: Mapping[str, Any], other: Mapping[str, Any]) -> Interval | None:
    """Around a perplexity over ``other``, of another model on the same rows: narrower than either's own, since what is
    hard for one is hard for both. None where the rows are not the same, or the losses of each were not recorded."""
    mine, theirs = entry.get("row_losses"), other.get("row_losses")
    if not mine or not theirs or not same_rows(entry, other):
        return None
    return paired_ratio(mine, theirs)


def paired_ratio(losses: Sequence[float], others: Sequence[float]) -> Interval | None:
    """Around the ratio of two perplexities, from the ``losses`` of the same rows (nats per target, as many targets in
    each); None for fewer than three rows, and where a loss is not finite."""
    differences = [a - b for a, b in zip(losses, others, strict=True)]
    error = mean_error(differences)
    if error is None:
        return None
    return _around(math.exp(fmean(differences)), student(len(differences) - 1) * error)


def same_rows(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries are of one text cut into the same rows."""
    fixed = ("length", "stride", "bos", "tokens", "rows")
    texts = [(one.get("text") or {}).get("sha256") for one in (entry, other)]
    return texts[0] == texts[1] and all(entry.get(key) == other.get(key) for key in fixed)


def mean_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean; None where a value is not finite, or there are fewer than three."""
    if len(values) < FEWEST or not all(map(finite, values)):
        return None
    return stdev(values) / math.sqrt(len(values))


def _around(value: float, margin: float) -> Interval | None:
    """So many nats below and above."""
    if not margin < 700:
        return None
    return value * math.exp(-margin), value * math.exp(margin)
