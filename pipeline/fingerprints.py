"""Fingerprints of stages: what differs between what a stage was done with and what is asked for now, in words."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

#: Of the inputs that differ so many are named: a corpus has 59,166.
NAMED = 5
#: How a difference of formats begins.
OF_FORMAT = "format of the stage: "


def compare_fingerprints(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, one phrase each; empty when they are equal.

    Every key of the config is named, and of the inputs the first few: of those that were moved, from where to where.
    """
    differences = []
    for name, before, after in _differing(old, new, "config"):
        was, now = (json.dumps(value, ensure_ascii=False) for value in (before, after))
        differences.append(f"{name}: was {was}, is {now}")
    inputs = _differing(old, new, "inputs")
    gone = {name: before for name, before, after in inputs if after is None}
    come = {name: after for name, before, after in inputs if before is None}
    if gone and Counter(gone.values()) == Counter(come.values()):
        inputs = [each for each in inputs if None not in each]
        differences.append(_moved(list(gone), list(come)))
    differences += [f"input {name} changed" for name, _, _ in inputs[:NAMED]]
    if len(inputs) > NAMED:
        differences.append(f"and {len(inputs) - NAMED:,} more inputs")
    differences += [f"output of an earlier stage, {name} changed" for name, _, _ in _differing(old, new, "upstream")]
    if old.get("format") != new.get("format"):
        was, now = old.get("format"), new.get("format")
        differences.append(
            f"{OF_FORMAT}was {was}, is {now}: another version of regrow wrote it, and this one cannot read it"
        )
    return differences


def is_of_format(difference: str) -> bool:
    """Whether what differs is the stage's format, which no key changes back."""
    return difference.startswith(OF_FORMAT)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], part: str) -> list[tuple[str, Any, Any]]:
    """(name, value before, value after) of what differs in one part of two fingerprints; None where it is not there."""
    before, after = old.get(part, {}), new.get(part, {})
    names = sorted(before.keys() | after.keys())
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def _moved(before: list[str], after: list[str]) -> str:
    """Says that the inputs ``before`` are the inputs ``after``, by the paths that hold all of each."""
    if len(before) == 1:
        return f"input {before[0]} stands elsewhere: its content is {after[0]} now; a link at the old place will do"
    old, new = (os.path.commonpath(names) or "." for names in (before, after))
    return f"{len(before):,} inputs stand elsewhere: what was in {old} is in {new} now; a link at the old place will do"
