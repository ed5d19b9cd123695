"""From scores to removed blocks, against the orders and removed sets that Shortened LLM published."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.importance.selection import (
    choose_blocks,
    near_ties,
    order_blocks,
    protected_blocks,
    read_block_order,
    write_block_order,
)
from pipeline.run import RegrowError

#: Nota's order for vicuna-7b-v1.3 by PPL, least important first.
VICUNA = "25,27,10,24,11,20,8,29,6,5,26,22,9,7,15,12,16,18,21,13,28,19,4,23,14,30,17,3,1,31,2,0"
SIX = [10, 11, 20, 24, 25, 27]
FIFTEEN = sorted([*SIX, 6, 8, 29, 5, 26, 7, 9, 15, 22])
TWENTY = sorted([*FIFTEEN, 12, 13, 16, 18, 21])


@pytest.mark.parametrize(("remove", "removed"), [(6, SIX), (15, FIFTEEN), (20, TWENTY), (26, list(range(4, 30)))])
def test_the_published_order_gives_the_published_models(tmp_path, remove, removed):
    (tmp_path / "block_order.csv").write_text(VICUNA + "\n")
    order = read_block_order(tmp_path / "block_order.csv", 32)
    assert choose_blocks(order, remove) == removed, f"{remove} removed blocks are not the published ones"


def test_without_the_protect_rule_the_smallest_model_would_be_another():
    order = [int(block) for block in VICUNA.split(",")]
    free = choose_blocks(order, 26, protect_first=0, protect_last=0)
    assert set(range(4, 30)) - set(free) == {17} and set(free) - set(range(4, 30)) == {30}


@given(st.permutations(range(12)), st.integers(0, 12), st.integers(0, 5), st.integers(0, 5))
def test_choice_is_the_first_free_ones_of_the_order(order, remove, first, last):
    kept = set(protected_blocks(12, first, last))
    free = [block for block in order if block not in kept]
    if remove > len(free):
        with pytest.raises(RegrowError, match=rf"{remove} of 12 blocks cannot be removed.*leaves {len(free)}"):
            choose_blocks(order, remove, protect_first=first, protect_last=last)
    else:
        chosen = choose_blocks(order, remove, protect_first=first, protect_last=last)
        assert chosen == sorted(free[:remove])


def test_scores_become_an_order_with_ties_by_index():
    assert order_blocks([2.0, 1.0, math.inf, 1.0]) == [1, 3, 0, 2]
    assert order_blocks([2.0, 1.0, 3.0, 1.0], higher_is="less important") == [2, 0, 1, 3]
    with pytest.raises(RegrowError, match=r"blocks \[1\] are not numbers"):
        order_blocks([2.0, math.nan])
    assert near_ties([3.0, 1.0, 1.005, 2.0], [1, 2, 3, 0], 1e-2) == [[1, 2]]


def test_an_order_file_is_read_back_and_a_bad_one_refused_by_name(tmp_path):
    path = tmp_path / "block_order.csv"
    write_block_order(path, [2, 0, 1])
    assert path.read_text() == "2,0,1\n" and read_block_order(path, 3) == [2, 0, 1]
    for text in ("2,0\n", "2,0,0\n", "3,1,0\n", ""):
        path.write_text(text)
        with pytest.raises(RegrowError, match=r"block_order\.csv: \d entries, expected each of 0 to 2 once"):
            read_block_order(path, 3)
    for text in ("2,a,1", "\x00\xff"):
        path.write_text(text)
        with pytest.raises(RegrowError, match=r"block_order\.csv: cannot be read"):
            read_block_order(path, 3)
    with pytest.raises(RegrowError, match=r"gone\.csv: cannot be read"):
        read_block_order(tmp_path / "gone.csv", 3)
    with pytest.raises(RegrowError, match="not every index"):
        choose_blocks([0, 0, 1], 1)
