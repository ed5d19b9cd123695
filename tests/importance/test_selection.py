"""From scores to removed blocks, against the orders and removed sets that Shortened LLM published."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RegrowError
from pipeline.importance.cut import Cut
from pipeline.importance.selection import (
    choose_blocks,
    choose_window,
    choose_within,
    near_ties,
    order_blocks,
    read_block_order,
    write_block_order,
)
from pipeline.model.describe import Sizes

#: Nota's order for vicuna-7b-v1.3 by PPL, least important first.
VICUNA = "25,27,10,24,11,20,8,29,6,5,26,22,9,7,15,12,16,18,21,13,28,19,4,23,14,30,17,3,1,31,2,0"
SIX = [10, 11, 20, 24, 25, 27]
FIFTEEN = sorted([*SIX, 6, 8, 29, 5, 26, 7, 9, 15, 22])
TWENTY = sorted([*FIFTEEN, 12, 13, 16, 18, 21])


@pytest.mark.parametrize(("remove", "removed"), [(6, SIX), (15, FIFTEEN), (20, TWENTY), (26, list(range(4, 30)))])
def test_the_published_order_gives_the_published_models(tmp_path, remove, removed):
    (tmp_path / "block_order.csv").write_text(VICUNA + "\n")
    order = read_block_order(tmp_path / "block_order.csv", 32)
    assert choose_blocks(order, Cut(remove=remove)) == removed, f"{remove} removed blocks are not the published ones"


def test_without_the_protect_rule_the_smallest_model_would_be_another():
    order = [int(block) for block in VICUNA.split(",")]
    free = choose_blocks(order, Cut(remove=26, protect_first=0, protect_last=0))
    assert set(range(4, 30)) - set(free) == {17} and set(free) - set(range(4, 30)) == {30}


@given(st.permutations(range(12)), st.integers(0, 12), st.integers(0, 5), st.integers(0, 5))
def test_choice_is_the_first_free_ones_of_the_order(order, remove, first, last):
    cut = Cut(remove=remove, protect_first=first, protect_last=last)
    free = [block for block in order if first <= block < 12 - last]
    if not 0 < remove <= min(len(free), 11):
        with pytest.raises(RegrowError, match=rf"remove {remove}: (no block would go|only {min(len(free), 11)} of 12)"):
            choose_blocks(order, cut)
    else:
        assert choose_blocks(order, cut) == sorted(free[:remove])


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
        choose_blocks([0, 0, 1], Cut(remove=1))


def test_how_many_go_can_be_said_in_three_ways():
    order = [int(block) for block in VICUNA.split(",")]
    assert choose_blocks(order, Cut(ratio=0.2)) == SIX
    target = Cut(parameters=3702665216)
    assert choose_blocks(order, target.taking(target.count(Sizes((202383360,) * 32, 6738415616)))) == FIFTEEN
    with pytest.raises(RegrowError, match="remove 27: only 26 of 32 blocks may go, 6 are protected"):
        choose_blocks(order, Cut(remove=27))


@given(st.integers(3, 10), st.integers(0, 3), st.integers(0, 3), st.data())
def test_the_window_is_the_nearest_of_those_between_the_protected(total, first, last, data):
    windows = [data.draw(st.lists(st.integers(0, 5), min_size=total - s, max_size=total - s)) for s in range(total)]
    remove = data.draw(st.integers(1, total - 1))
    cut = Cut(remove=remove, protect_first=first, protect_last=last)
    starts = [start for start in range(total) if start >= first and start + remove <= total - last]
    if not starts:
        with pytest.raises(RegrowError, match=rf"remove {remove}: only \d of {total} blocks may go"):
            choose_window(windows, cut)
        return
    chosen = choose_window(windows, cut)
    by_length = {str(n): {"scores": [row[n - 1] for row in windows[: total - n + 1]]} for n in range(1, total)}
    assert choose_window(by_length, cut) == chosen, "windows by length say otherwise"
    nearest = min(windows[start][remove - 1] for start in starts)
    assert chosen == list(range(chosen[0], chosen[0] + remove)) and chosen[0] in starts
    assert windows[chosen[0]][remove - 1] == nearest
    assert all(windows[start][remove - 1] > nearest for start in starts if start < chosen[0]), "not the first of equals"


def test_a_budget_stops_before_the_block_that_would_break_it():
    order, asked = [3, 1, 4, 2, 0, 5], []

    def perplexity(removed):
        asked.append(removed)
        return 10.0 * len(removed)

    def within(budget, first=0, last=0):
        return choose_within(order, Cut(perplexity=budget, protect_first=first, protect_last=last), perplexity)

    assert within(30.0) == [1, 3, 4]
    assert asked == [[3], [1, 3], [1, 3, 4], [1, 2, 3, 4]], "more was measured than needed"
    assert within(1000.0, 2, 1) == [2, 3, 4]
    assert len(within(1000.0)) == 5, "one block must stay"
    with pytest.raises(RegrowError, match="without block 3 the perplexity is 10, the budget 9"):
        within(9.0)
    with pytest.raises(RegrowError, match="perplexity is nan"):
        choose_within(order, Cut(perplexity=9.0, protect_first=0), lambda removed: math.nan)


def test_all_that_a_criterion_has_is_not_its_windows():
    with pytest.raises(RegrowError, match=r'scores\["ppl"\]\["windows"\], got all that it has'):
        choose_window({"scores": [1.0, 2.0], "order": [0, 1]}, Cut(remove=1))
