"""How many blocks go, by every statement; what is protected; and what is known of a cut before one is chosen."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RegrowError
from pipeline.importance.cut import STATEMENTS, Cut, large_cuts
from pipeline.model.describe import Sizes

#: vicuna-7b: 32 blocks, and embeddings and a head beside them.
VICUNA = Sizes((202383360,) * 32, 6738415616)


@pytest.mark.parametrize(
    ("statement", "count"),
    [
        ({"remove": 6}, 6),
        ({"remove": 26}, 26),
        ({"ratio": 0.2}, 6),
        ({"ratio": 0.5}, 16),
        ({"ratio": 0.8}, 25),
        ({"parameters": 5524115456}, 6),
        ({"parameters": 5524115455}, 7),
        ({"parameters": 1476448256}, 26),
    ],
)
def test_removals_of_vicuna(statement: dict, count: int) -> None:
    cut = Cut(**statement)
    assert cut.count(VICUNA) == count
    assert cut.planned(VICUNA) == [202383360] * count
    if "parameters" not in statement:
        assert cut.count(32) == count, "the sizes are not needed"


def test_ratio_is_taken_as_written() -> None:
    assert math.floor(0.29 * 100) == 28, "floating point would lose a block here"
    assert Cut(ratio=0.29, protect_first=0, protect_last=0).count(100) == 29


@pytest.mark.parametrize(
    ("statement", "numbers"),
    [
        ({"remove": 27}, ["27", "26 of 32", "6 are protected"]),
        ({"remove": 0}, ["1 of 32"]),
        ({"ratio": 0.9}, ["28", "26 of 32"]),
        ({"ratio": 0.03}, ["0.03", "no block", "0.03125"]),
        ({"parameters": 6738415616}, ["6,738,415,616", "no block"]),
        ({"parameters": 10**9}, ["1,000,000,000", "1,476,448,256"]),
        ({"blocks": (3, 32)}, ["32", "0 to 31"]),
        ({"perplexity": 20.0, "protect_first": 31}, ["perplexity 20", "0 of 32 blocks may go", "32 are protected"]),
    ],
)
def test_impossible_cuts_are_refused_with_the_numbers(statement: dict, numbers: list[str]) -> None:
    with pytest.raises(RegrowError) as refusal:
        Cut(**statement).planned(VICUNA)
    assert all(number in str(refusal.value) for number in numbers), str(refusal.value)


@pytest.mark.parametrize("statement", [{}, {"remove": 3, "ratio": 0.2}, {"remove": 3, "perplexity": 20.0}])
def test_a_cut_states_one_thing(statement: dict) -> None:
    have = " and ".join(statement) or "none"
    with pytest.raises(RegrowError, match=f"exactly one of {', '.join(STATEMENTS)}; stated here: {have}"):
        Cut(**statement)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ({"remove": 1.5}, "remove is 1.5: a whole number is wanted"),
        ({"remove": "9"}, "remove is '9': a whole number is wanted"),
        ({"remove": True}, "remove is True"),
        ({"ratio": "0.2"}, "ratio is '0.2': a number is wanted"),
        ({"ratio": math.nan}, "ratio is nan"),
        ({"ratio": math.inf}, "ratio is inf"),
        ({"parameters": "6e9"}, "parameters is '6e9'"),
        ({"perplexity": math.nan}, "perplexity is nan: a number is wanted"),
        ({"blocks": (2.0,)}, r"blocks \(2.0,\): a list of whole numbers"),
        ({"blocks": 3}, "blocks 3: a list of whole numbers"),
        ({"blocks": "34"}, "blocks '34': a list of whole numbers"),
        ({"remove": 1, "protect_first": -1}, "protect_first is -1: it is a number of blocks, 0 or more"),
        ({"remove": 1, "protect_last": 1.5}, "protect_last is 1.5: a whole number is wanted"),
    ],
)
def test_what_is_no_number_is_refused_when_the_cut_is_made(statement: dict, said: str) -> None:
    with pytest.raises(RegrowError, match=said):
        Cut(**statement)


def test_numbers_of_other_kinds_are_taken() -> None:
    assert Cut(remove=np.int64(6)).count(32) == 6 and Cut(ratio=Fraction(1, 4)).count(32) == 8
    assert Cut(parameters=5.524115456e9).count(VICUNA) == 6
    assert Cut(blocks=[np.int64(5)]).planned(VICUNA) == [202383360]
    assert Cut(perplexity=math.inf).most(32) == 26


def test_what_does_not_say_a_number_is_not_counted() -> None:
    with pytest.raises(RegrowError, match=r"needs the sizes of the model's blocks"):
        Cut(parameters=10**9).count(32)
    with pytest.raises(RegrowError, match="a cut of a perplexity does not say how many"):
        Cut(perplexity=20.0).count(VICUNA)
    with pytest.raises(RegrowError, match="a cut of named blocks does not say how many"):
        Cut(blocks=(3, 4)).count(VICUNA)
    assert Cut(perplexity=20.0).planned(VICUNA) == [], "how many go is not known before the model is run"


def test_named_blocks_go_whatever_is_protected() -> None:
    assert Cut(blocks=(7, 0)).planned(Sizes(tuple(range(100, 108)), 1000)) == [100, 107]


def test_one_block_stays_even_when_none_is_protected() -> None:
    cut = Cut(remove=3, protect_first=0, protect_last=0)
    assert (cut.count(4), cut.most(4), cut.free(4), cut.protected(4)) == (3, 3, [0, 1, 2, 3], [])
    with pytest.raises(RegrowError, match="3 of 4"):
        cut.taking(4).count(4)


@given(st.integers(1, 12), st.integers(0, 8), st.integers(0, 8))
def test_a_block_is_free_or_protected(total: int, first: int, last: int) -> None:
    cut = Cut(ratio=0.5, protect_first=first, protect_last=last)
    assert sorted([*cut.free(total), *cut.protected(total)]) == list(range(total))
    assert set(cut.protected(total)) == {*range(min(first, total)), *range(max(0, total - last), total)}
    assert cut.taking(2) == Cut(remove=2, protect_first=first, protect_last=last), "the protect rule was lost"


@given(st.data())
def test_target_holds_whichever_blocks_go_and_one_fewer_might_not(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=2, max_size=12))
    protected = data.draw(st.integers(0, len(sizes) - 1))
    dense = sum(sizes) + data.draw(st.integers(0, 100))
    target = data.draw(st.integers(1, dense))
    try:
        cut = Cut(parameters=target, protect_first=protected, protect_last=0)
        count = cut.count(Sizes(tuple(sizes), dense))
    except RegrowError:
        smallest = sorted(sizes)[: min(len(sizes) - protected, len(sizes) - 1)]
        assert target >= dense or dense - sum(smallest) > target, "refused though a cut reaches the target"
        return
    gone = data.draw(st.permutations(sizes))[:count]
    assert dense - sum(gone) <= target
    assert dense - sum(sorted(sizes)[: count - 1]) > target, "one block fewer would always have reached the target"


def test_large_cuts_are_said_beyond_a_third_at_once_and_half_in_all() -> None:
    assert large_cuts(10, 30) == [] == large_cuts(8, 24, (32, list(range(24))))
    (line,) = large_cuts(11, 30)
    assert line.startswith("11 of 30 blocks go in one cut, 37%; up to a third is advised (github.com/NVIDIA/")
    assert large_cuts(5, 20, (30, list(range(20)))) == [], "half is not above half"
    (line,) = large_cuts(6, 20, (30, list(range(20))))
    assert line.startswith("16 of 30 blocks are gone in all, 53%; above half, steps of 30% are advised")
