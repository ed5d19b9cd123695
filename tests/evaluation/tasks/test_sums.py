"""The arithmetic task: its items are the same everywhere, and right."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

from pipeline.evaluation.tasks.sums import ITEMS, KINDS, SHOWN, items, write_items


def test_every_sum_is_right_and_within_its_kind():
    made = items()
    assert Counter(item["kind"] for item in made) == dict.fromkeys(KINDS, ITEMS)
    for item in made:
        lines = f"{item['text']} {item['answer']}".split("\n")
        assert len(lines) == SHOWN + 1, item
        first, second, sign = KINDS[item["kind"]]
        for line in lines:
            one, by, other, answer = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", line).groups()
            assert by == sign and 1 <= int(one) <= first and 1 <= int(other) <= second, line
            assert int(answer) == (int(one) + int(other) if sign == "+" else int(one) - int(other)), line


def test_items_are_the_same_on_every_machine(tmp_path):
    """Figures of two runs compare only on the same items: their bytes are part of the task."""
    write_items(tmp_path)
    written = (tmp_path / "sums.jsonl").read_bytes()
    assert [json.loads(line) for line in written.splitlines()] == items()
    assert hashlib.sha256(written).hexdigest() == "7ffb1ae8e3d03bdd168956ac7230f8326f8a95c70a8db1a9c6a1f44fa8e386fa", (
        "other items: raise the task's version in its definition"
    )
