"""Which sets are compared at which count; what they measure stands in test_choosing.py."""

from __future__ import annotations

import pytest

from pipeline.criteria import CONTROLS
from pipeline.importance.comparison import compared_sets
from pipeline.importance.controls import control_blocks
from pipeline.importance.cut import Cut

#: Of six blocks; distances grow with the start of a window.
ENTRIES = {
    "ppl": {"order": [3, 2, 1, 4, 0, 5], "windows": {"2": {"scores": [5.0, 4.0, 3.0, 2.0, 1.0]}}},
    "angular_last": {
        "order": [2, 3, 4, 1, 5, 0],
        "windows": [[start + n / 10 for n in range(6 - start)] for start in range(6)],
    },
    "euclidean": {"order": [5, 4, 3, 2, 1, 0], "windows": [[0.0] * (6 - start) for start in range(6)]},
    "magnitude": {"order": [0, 1, 2, 3, 4, 5]},
}


@pytest.fixture
def found():
    """Sets by count, criterion or control, and selection; one block is protected at each end."""
    cut = Cut(ratio=0.5, protect_first=1, protect_last=1)
    sets = list(compared_sets(ENTRIES, 6, [0, 1, 2, 4, 5], cut, seed=3))
    named = {(one["remove"], one["by"], one["selection"]): one["blocks"] for one in sets}
    assert len(named) == len(sets), "a set stands twice"
    assert all(len(one["blocks"]) == one["remove"] and not one["linear_map"] for one in sets)
    return named


def test_counts_that_the_protect_rule_forbids_are_left_out(found):
    assert {count for count, _, _ in found} == {1, 2, 4}
    assert all(blocks == [1, 2, 3, 4] for (count, _, _), blocks in found.items() if count == 4), "only these are free"


def test_every_criterion_window_and_control_is_there(found):
    assert {by for _, by, way in found if way == "one-shot"} == set(ENTRIES)
    assert found[2, "ppl", "one-shot"] == [2, 3] and found[2, "magnitude", "one-shot"] == [1, 2]
    # ppl was scored for windows of two alone; peers choose no window by euclidean.
    assert {(count, by) for count, by, way in found if way == "contiguous"} == {
        (2, "ppl"),
        *((count, "angular_last") for count in (1, 2, 4)),
    }
    assert found[2, "ppl", "contiguous"] == [3, 4] and found[2, "angular_last", "contiguous"] == [1, 2]
    cut = Cut(remove=2, protect_first=1, protect_last=1)
    for control in CONTROLS:
        assert found[2, control, "control"] == control_blocks(control, 6, cut, seed=3)
