"""Lines of a status, and the words for times and numbers in them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.intervals import perplexity_interval
from pipeline.reporting.numbers import finite


@dataclass(frozen=True)
class Line:
    """What is ``said``, and behind it what the clock alone changes."""

    said: str
    passing: str = ""

    @property
    def text(self) -> str:
        return self.said + self.passing


def under(line: Line) -> Line:
    """The line, below one on a stage."""
    return Line(" " * 12 + line.said, line.passing)


def ago(since: float) -> str:
    """How long ago a time (time.time) was: 12 s, 4 min, 3.2 h, 2.5 days."""
    seconds = max(0.0, time.time() - since)
    for unit, size in (("days", 86400), ("h", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds / 60:.0f} min ago" if seconds >= 120 else f"{seconds:.0f} s ago"


def perplexity_of(entry: Mapping[str, Any]) -> str:
    """A perplexity's ``value`` with its interval, where ``stderr`` and ``rows`` tell it."""
    if not finite(entry.get("value")):
        return "perplexity not finite"
    between = perplexity_interval(entry)
    interval = "" if between is None else f" (95 %: {between[0]:.2f} to {between[1]:.2f})"
    return f"perplexity {entry['value']:.2f}{interval}"
