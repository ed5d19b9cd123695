"""Lanes: every document in one part, rows that are the documents end to end, and a cursor that goes on exactly."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.documents import read_documents
from pipeline.data.lanes import Cursor, Lane, split_into_parts
from pipeline.data.shards import Shard, list_shards
from pipeline.run import RegrowError


def encode(text: str) -> list[int]:
    """Ids of a text without a tokenizer: its bytes, and 256 behind them."""
    return [*text.encode(), 256]


def shard(documents: int | None) -> Shard:
    return Shard("place", "path", None, "jsonl", 1, None, documents, "text", ())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 60))
def test_every_document_stands_in_one_part(counts, lanes):
    if lanes > sum(counts) and lanes > len(counts):
        with pytest.raises(RegrowError, match=rf"{sum(counts)} documents; set at most {sum(counts)}"):
            split_into_parts([shard(count) for count in counts], lanes)
        return
    parts = split_into_parts([shard(count) for count in counts], lanes)
    assert len(parts) >= lanes, f"{len(parts)} parts for {lanes} lanes"
    for number, count in enumerate(counts):
        held = [index for part in parts if part.shard == number
                for index in range(part.first, count if part.stop is None else part.stop)]  # fmt: skip
        assert held == list(range(count)), f"shard {number} of {count} documents is held as {held}"
        assert all(part.stop is None or part.stop > part.first for part in parts), "a part without documents"


def test_shards_of_unknown_length_are_not_split():
    unknown = [shard(None), shard(None), shard(7)]
    assert len(split_into_parts(unknown, 3)) == 3
    with pytest.raises(RegrowError, match=r"3 shards of unknown length; set at most data\.lanes=3"):
        split_into_parts(unknown, 4)


def lane(shards, tmp_path, number=0, *, lanes=4, row_length=64, seed=0, cursor=None):
    return Lane(number, lanes=lanes, shards=shards, encode=encode, row_length=row_length, seed=seed, cache=tmp_path,
                cursor=cursor or Cursor())  # fmt: skip


def texts_of(shards, one: Lane) -> list[str]:
    """The documents of a lane's parts."""
    return [
        text
        for part in one.parts
        for index, text in read_documents(Path(shards[part.shard].name), shards[part.shard].format)
        if part.first <= index and (part.stop is None or index < part.stop)
    ]


def test_rows_are_the_lane_s_documents_end_to_end_epoch_after_epoch(corpus, tmp_path):
    everything = []
    for number in range(8):
        one = lane(corpus, tmp_path, number, lanes=8)
        documents = texts_of(corpus, one)
        size = sum(len(encode(text)) for text in documents)
        rows = [next(one) for _ in range(2 * size // 64 + 1)]
        assert all(row.dtype == np.int64 and row.shape == (64,) for row, _ in rows)
        tokens = np.concatenate([row for row, _ in rows]).tolist()
        for epoch in range(2):
            read = bytes(token % 256 for token in tokens[epoch * size : (epoch + 1) * size]).split(b"\0")
            assert sorted(read) == sorted([b"", *(text.encode() for text in documents)]), f"epoch {epoch}"
        assert max(map(len, documents)) > 256, "this test wants a document longer than a few rows"
        assert [cursor.epoch for _, cursor in rows] == sorted(cursor.epoch for _, cursor in rows)
        assert rows[-1][1].epoch >= 1, "no epoch's end was crossed"
        everything += documents
    held = [text for shard in corpus for _, text in read_documents(Path(shard.name), shard.format)]
    assert sorted(everything) == sorted(held), "the lanes together do not hold each document once"


def test_epochs_differ_in_order_and_seeds_too(corpus, tmp_path):
    """Two parts in a lane: some later epoch has them in the other order, and another seed deals them otherwise."""
    one = lane(corpus, tmp_path, lanes=2)
    orders = {}
    while len(orders) < 6:
        row, cursor = next(one)
        orders.setdefault(cursor.epoch, row.tolist())
    assert len({tuple(row) for row in orders.values()}) > 1, "every epoch begins with the same part"
    deals = {tuple(lane(corpus, tmp_path, lanes=2, seed=seed).parts) for seed in range(4)}
    assert len(deals) > 1, "the seed does not change which parts a lane has"


def test_every_cursor_goes_on_exactly(corpus, tmp_path):
    one = lane(corpus, tmp_path, 1)
    stop = sum(len(encode(text)) for text in texts_of(corpus, one)) // 64 + 12  # across the epoch's boundary
    rows = [next(one) for _ in range(stop + 3)]
    for at in (0, 1, 2, 7, stop // 2, *range(stop - 16, stop)):
        resumed = lane(corpus, tmp_path, 1, cursor=rows[at][1])
        for later in range(at + 1, at + 4):
            ids, cursor = next(resumed)
            assert np.array_equal(ids, rows[later][0]) and cursor == rows[later][1], f"resumed behind row {at}"
    assert any(a.epoch < b.epoch for (_, a), (_, b) in pairwise(rows)), "no boundary of epochs was crossed"


def test_a_row_that_ends_with_its_document_goes_on_at_the_next(shard_of, tmp_path):
    shard_of("a.jsonl", ["x" * 15, "y" * 7, "z" * 7])
    shards = list_shards(str(tmp_path / "corpus"))
    one = lane(shards, tmp_path, lanes=1, row_length=16)
    rows = [next(one) for _ in range(3)]
    assert rows[0][1] == Cursor(0, 0, 0, 16) and rows[0][0].tolist() == [120] * 15 + [256]
    ids, cursor = next(lane(shards, tmp_path, lanes=1, row_length=16, cursor=rows[0][1]))
    assert ids.tolist() == rows[1][0].tolist() == [121] * 7 + [256] + [122] * 7 + [256]
    assert cursor == rows[1][1]


def test_a_lane_whose_documents_are_all_excluded_refuses(shard_of, tmp_path):
    book = {"text": "a book", "meta": {"redpajama_set_name": "RedPajamaBook"}}
    shard_of("a.jsonl", [book, book])
    shard_of("b.jsonl", ["kept", book])
    shards = [replace(s, exclude_domains=("RedPajamaBook",)) for s in list_shards(str(tmp_path / "corpus"))]
    lanes = [lane(shards, tmp_path, number, lanes=2, row_length=8) for number in range(2)]
    barren = next(one for one in lanes if one.parts[0].shard == 0)
    with pytest.raises(RegrowError, match=rf"lane {barren.number}: every document of its parts is excluded"):
        next(barren)
    fertile = next(one for one in lanes if one is not barren)
    assert bytes(next(fertile)[0][:4].tolist()) == b"kept", "the other lane has lost its document"
    # Also when the lane is opened in a later epoch.
    with pytest.raises(RegrowError, match="excluded"):
        next(lane(shards, tmp_path, barren.number, lanes=2, row_length=8, cursor=Cursor(3, 0, 0, 0)))
