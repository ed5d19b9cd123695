"""Parts: every document of a corpus stands in one of them, and what cannot be cut is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.shards import Shard
from pipeline.data.stream.parts import deal, split_into_parts
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


# ---- parts


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
