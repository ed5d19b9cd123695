"""Parts: every document in one, at least as many as lanes, dealt and ordered by hashes alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.shards import Shard
from pipeline.data.stream.parts import (
    LANES,
    choose_lanes,
    deal,
    draw,
    fitting_lanes,
    most_lanes,
    shuffle,
    split_into_parts,
)
from pipeline.errors import RegrowError


def listed(documents: int | None, groups: tuple[int, ...] | None = None, source: int = 0) -> Shard:
    return Shard(
        source,
        "place",
        "path",
        "local",
        None,
        "parquet" if groups else "jsonl",
        1,
        None,
        None,
        documents,
        groups,
        "text",
        (),
    )


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=10), st.integers(1, 60))
def test_every_document_stands_in_one_part(groups, lanes):
    """Shards with several groups are parquet files of these row groups, the others files of so many documents."""
    shards = [listed(sum(group), tuple(group) if len(group) > 1 else None) for group in groups]
    total = sum(map(sum, groups))
    if lanes > total and lanes > sum(map(len, groups)):
        with pytest.raises(RegrowError, match=rf"{total} documents; set at most {total}"):
            split_into_parts(shards, lanes)
        return
    parts = split_into_parts(shards, lanes)
    assert len(parts) >= lanes, f"{len(parts)} parts for {lanes} lanes"
    for number, group in enumerate(groups):
        mine = [part for part in parts if part.shard == number]
        held = [index for part in mine for index in range(part.first, sum(group) if part.stop is None else part.stop)]
        assert held == list(range(sum(group))), f"shard {number} of {group} documents is held as {mine}"
        assert all(part.stop is None or part.stop > part.first for part in mine), "a part without documents"
        edges = np.cumsum([0, *group])
        for part in mine if len(group) > 1 else ():
            assert edges[part.group] <= part.first < part.stop <= edges[part.group + 1], "a part of two row groups"


def test_shards_of_unknown_length_are_not_split():
    unknown = [listed(None), listed(None), listed(7)]
    assert len(split_into_parts(unknown, 3)) == 3
    with pytest.raises(RegrowError, match=r"3 shards of unknown length; set at most data\.lanes=3"):
        split_into_parts(unknown, 4)
    assert [part.group for part in split_into_parts([listed(None, (3, 0, 2))], 2)] == [0, 2], (
        "an empty row group is a part"
    )


def test_a_source_without_shards_is_refused():
    with pytest.raises(RegrowError, match="data source 1 has not one shard"):
        deal([listed(9), listed(9, source=2)], 2, 0)


def test_an_order_depends_on_the_seed_and_the_names_alone():
    parts = split_into_parts([listed(5) for _ in range(12)], 12)
    order = shuffle(parts, 0, "parts")
    assert sorted(order, key=lambda part: part.shard) == parts, "a part is lost"
    assert order != parts, "nothing was shuffled"
    assert shuffle(list(reversed(parts)), 0, "parts") == order, "the order depends on how the parts came"
    assert len({tuple(shuffle(parts, seed, name)) for seed in (0, 1) for name in ("parts", 3, 4)}) == 6
    assert draw(1, 23) != draw(12, 3) and draw(0, "a", 1) == draw(0, "a", 1) and len(draw(0)) == 32


def test_a_source_s_name_is_in_its_deal_only_where_there_are_several():
    """So that a corpus of one source is dealt as it was before there were several."""
    shards = [listed(9) for _ in range(8)]
    (alone,) = deal(shards, 4, 0)
    assert alone.names == () and alone.parts == shuffle(split_into_parts(shards, 4), 0, "parts")
    first, second = deal([*shards, *(listed(9, source=1) for _ in range(8))], 4, 0)
    assert (first.names, second.names) == ((0,), (1,)) and first.shards == shards
    assert first.parts != second.parts, "two sources of one shape are read in step"
    assert first.parts == shuffle(split_into_parts(shards, 4), 0, "parts", 0)


def test_pieces_of_a_cut_part_are_alike():
    parts = split_into_parts([listed(1000), listed(10), listed(10)], 12)
    sizes = [part.stop - part.first for part in parts if part.shard == 0]
    assert len(parts) >= 12 and max(sizes) - min(sizes) <= 1, f"12 lanes and pieces of {sizes} documents"
    assert [part.shard for part in parts if part.shard] == [1, 2], "a small file was cut, and a large one could be"


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=6), st.booleans())
def test_the_most_lanes_of_a_source_are_as_many_as_can_be_dealt(groups, counted):
    """Of unknown length is here whatever has no row groups, unless all are ``counted``."""
    shards = [
        listed(sum(group) if counted or len(group) > 1 else None, tuple(group) if len(group) > 1 else None)
        for group in groups
    ]
    most = most_lanes(shards)
    if most:
        assert len(split_into_parts(shards, most)) >= most
    with pytest.raises(RegrowError, match=f"set at most|has {most} documents"):
        split_into_parts(shards, most + 1)


@pytest.mark.parametrize(
    ("most", "processes", "lanes"),
    [
        (59_166, 1, 1536),
        (59_166, 512, 1536),
        (1536, 8, 1536),
        (1535, 8, 768),
        (700, 1, 384),  # 512 serve 10 numbers of processes, 384 serve 16
        (700, 512, 512),
        (9000, 5, 960),  # 5 x 192
        (9000, 10, 960),
        (9000, 1000, 1000),
        (9000, 2048, 2048),
        (5, 1, 4),
        (5, 3, 3),
        (1, 1, 1),
        (7, 8, None),
        (0, 1, None),
    ],
)
def test_lanes_are_the_most_that_many_numbers_of_processes_divide(most, processes, lanes):
    assert fitting_lanes(most, processes) == lanes
    assert lanes is None or lanes % processes == 0


def test_the_smallest_source_decides_on_the_lanes_and_is_named_where_it_is_too_small():
    many = [listed(2) for _ in range(LANES)]
    assert choose_lanes(many, 4) == LANES
    small = [listed(100, source=1), listed(None, source=1)]
    assert choose_lanes([*many, *small], 2) == 2, "of unknown length: two shards, two lanes"
    with pytest.raises(RegrowError, match="data source 1 allows at most 2 lanes, and 4 processes need one each"):
        choose_lanes([*many, *small], 4)
    with pytest.raises(RegrowError, match="data source 1 has not one shard"):
        choose_lanes([listed(9), listed(9, source=2)], 1)
