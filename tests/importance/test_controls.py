"""Controls: what they remove, with and without the protect rule, and that all choose the same where none is free."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.criteria import CONTROLS
from pipeline.errors import RegrowError
from pipeline.importance.controls import control_blocks, control_order
from pipeline.importance.cut import Cut

FREE = {"protect_first": 0, "protect_last": 0}


def test_tail_is_the_end_and_uniform_is_a_stride():
    assert control_order("tail", 5) == [4, 3, 2, 1, 0]
    assert control_blocks("tail", 32, Cut(remove=6)) == [24, 25, 26, 27, 28, 29], (
        "the last free blocks of a protected 32"
    )
    assert control_blocks("tail", 8, Cut(remove=2, **FREE)) == [6, 7]
    assert control_blocks("uniform", 8, Cut(remove=2, **FREE)) == [2, 6]
    assert control_blocks("uniform", 12, Cut(remove=4, **FREE)) == [1, 4, 7, 10]
    assert control_blocks("uniform", 32, Cut(remove=13)) == list(range(5, 30, 2)), "every second of 4 ... 29"


def test_random_is_the_seeds_and_grows_by_adding():
    # Written down once: the same on every machine and Python.
    assert control_order("random", 8, 0) == [3, 7, 5, 2, 4, 1, 6, 0]
    nine = control_blocks("random", 32, Cut(remove=9), seed=3)
    assert nine == control_blocks("random", 32, Cut(remove=9), seed=3)
    assert nine != control_blocks("random", 32, Cut(remove=9), seed=4)
    assert set(control_blocks("random", 32, Cut(remove=6), seed=3)) < set(nine)


@given(st.sampled_from(sorted(CONTROLS)), st.integers(1, 24), st.integers(1, 24), st.integers(0, 6), st.integers(0, 6))
def test_a_control_removes_so_many_free_blocks_or_says_why_not(control, total, remove, first, last):
    cut = Cut(remove=remove, protect_first=first, protect_last=last)
    if remove > cut.most(total):
        with pytest.raises(RegrowError, match=f"remove {remove}: only {cut.most(total)} of {total} blocks may go"):
            control_blocks(control, total, cut)
        return
    removed = control_blocks(control, total, cut)
    assert removed == sorted(set(removed)) and len(removed) == remove and set(removed) <= set(cut.free(total))
    if control == "uniform":
        gaps = [after - before for before, after in pairwise(removed)]
        assert not gaps or max(gaps) - min(gaps) <= 1, f"no constant stride: {removed}"


def test_where_only_the_protected_stay_every_control_is_the_same():
    assert {tuple(control_blocks(control, 32, Cut(remove=26))) for control in CONTROLS} == {tuple(range(4, 30))}


def test_an_unknown_control_is_refused():
    with pytest.raises(RegrowError, match="known are tail, random, uniform"):
        control_blocks("head", 8, Cut(remove=1))
    with pytest.raises(RegrowError, match="uniform spreads a given number of blocks, and has no order"):
        control_order("uniform", 8)
