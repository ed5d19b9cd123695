"""Lanes: every document in one part, rows that are the documents end to end, and a cursor that goes on exactly."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.shards import Shard
from pipeline.data.stream.lanes import draw_source, weight_edges
from pipeline.data.stream.parts import deal
from pipeline.data.stream.position import Cursor, LaneCursor
from pipeline.data.stream.strands import CHARACTERS, TEXTS
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.errors import RegrowError
from tests.data.corpora import (
    LANES,
    encode,
    lane,
    row_stream,
    shard,
    stream,
    take,
    two_sources,
    write_shard,
)


@pytest.fixture
def grouped(corpus, tmp_path) -> list[Shard]:
    """The corpus, with its parquet file in row groups of 4."""
    documents = [text for _, text in read_documents(Path(corpus[2].name), "parquet")]
    return [*corpus[:2], shard(write_shard(tmp_path / "grouped/part_2.parquet", documents, group=4)), *corpus[3:]]


# ---- the order of before


def recorded(shards, cache, rows, **settings) -> str:
    found = hashlib.sha256()
    for row in take(iter(row_stream(shards, cache, **settings)), rows):
        (cursor,) = row.cursor.cursors
        found.update(row.input_ids.tobytes())
        found.update(repr((row.index, row.lane, cursor.epoch, cursor.part, cursor.document, cursor.token)).encode())
    return found.hexdigest()


def test_one_source_is_read_in_the_order_of_the_first_release(texts, demo, tmp_path):
    """Hashes of rows and cursors that commit e7f6e85 gave, which knew neither sources nor weights: runs of before go
    on, and the recorded demo keeps its rows."""
    endings = [".jsonl", ".jsonl.zst", ".jsonl.gz"] * 3
    nine = [
        shard(write_shard(tmp_path / f"nine/part_{n}{ending}", texts[20 * n : 5 + 21 * n]))
        for n, ending in enumerate(endings)
    ]
    three = [
        shard(write_shard(tmp_path / f"three/part_{n}.jsonl", texts[300 + 20 * n : 310 + 25 * n])) for n in range(3)
    ]
    demos = [shard(path) for path in sorted((demo / "text" / "train" / "chunk1").iterdir())]
    found = [
        recorded(nine, tmp_path, 600, lanes=4, row_length=256, seed=0, weights=(1.0,)),
        recorded(three, tmp_path, 600, lanes=12, row_length=128, seed=7, weights=(1.0,)),
        recorded(demos, tmp_path, 1200, lanes=12, row_length=256, seed=0),
    ]
    assert found == [
        "62627af3eec90648a17622eb30a8351f225b258a09d991fd105269f653d5415b",
        "3d4acae1951133218864ed4e4ac7944c1a9e7c600ebaae57ec03d4dd2556b5c2",
        "401f09f53ae366c33db37720e365f80a4069739222886354dc21667ce6022d4c",
    ], (
        "whole files, six epochs; files cut to ranges; the demo: rows come in another order than before. Where that is "
        "meant, raise ORDER in pipeline/data/stream/position.py, so that no run goes on in another order, and take "
        f"these hashes: {found}"
    )


# ---- documents and epochs


def texts_of(shards, parts) -> list[str]:
    return [
        text
        for part in parts
        for index, text in read_documents(Path(shards[part.shard].name), shards[part.shard].format)
        if part.first <= index and (part.stop is None or index < part.stop)
    ]


def test_rows_are_the_lane_s_documents_end_to_end_epoch_after_epoch(grouped, tmp_path):
    everything = []
    for number in range(8):
        one = lane(grouped, tmp_path, number, lanes=8)
        documents = texts_of(grouped, deal(grouped, 8, 0)[0].parts[number::8])
        size = sum(len(encode(text)) for text in documents)
        rows = [next(one) for _ in range(2 * size // 64 + 1)]
        assert all(ids.dtype == np.int64 and ids.shape == (64,) for ids, *_ in rows)
        tokens = np.concatenate([ids for ids, *_ in rows]).tolist()
        for epoch in range(2):
            read = bytes(token % 256 for token in tokens[epoch * size : (epoch + 1) * size]).split(b"\0")
            assert sorted(read) == sorted([b"", *(text.encode() for text in documents)]), f"epoch {epoch}"
        epochs = [cursor.cursors[0].epoch for _, _, cursor, _ in rows]
        assert max(map(len, documents)) > 256, "this test wants a document longer than a few rows"
        assert epochs == sorted(epochs) and epochs[-1] >= 1, "no epoch's end was crossed"
        everything += documents
    held = [text for each in grouped for _, text in read_documents(Path(each.name), each.format)]
    assert sorted(everything) == sorted(held), "the lanes together do not hold each document once"


def test_cu_seqlens_give_the_documents_back(texts, tmp_path):
    """Also one of many rows, an empty one, and one that fills its row to the end."""
    documents = [texts[0], "", "x" * 63, *texts[1:6], " ".join(texts[6:16]), "", "end"]
    shards = [shard(write_shard(tmp_path / "corpus/a.jsonl", documents))]
    one = lane(shards, tmp_path, lanes=1)
    size = sum(len(encode(text)) for text in documents)
    pieces = [
        piece.tolist()
        for ids, edges, *_ in (next(one) for _ in range(size // 64 + 2))
        for piece in np.split(ids, edges[1:-1])
    ]
    rebuilt, whole = [], []
    for piece in pieces:
        assert piece and 256 not in piece[:-1], f"a piece of two documents, or of none: {piece}"
        whole += piece
        if piece[-1] == 256:
            rebuilt.append(bytes(whole[:-1]).decode())
            whole = []
    assert rebuilt[: len(documents)] == documents, "the pieces between the edges are not the documents"


def test_epochs_differ_in_order_and_seeds_too(grouped, tmp_path):
    """Two parts in a lane: some later epoch has them in the other order, and another seed deals them otherwise."""
    one = lane(grouped, tmp_path, lanes=2, row_length=512)
    orders = {}
    while len(orders) < 6:
        ids, _, cursor, _ = next(one)
        orders.setdefault(cursor.cursors[0].epoch, ids.tolist())
    assert len({tuple(row) for row in orders.values()}) > 1, "every epoch begins with the same part"
    deals = {tuple(deal(grouped, 2, seed)[0].parts) for seed in range(4)}
    assert len(deals) > 1, "the seed does not change which parts a lane has"


def test_every_cursor_goes_on_exactly(grouped, tmp_path):
    one = lane(grouped, tmp_path, 1)
    size = sum(len(encode(text)) for text in texts_of(grouped, deal(grouped, 4, 0)[0].parts[1::4]))
    rows = [next(one) for _ in range(size // 64 + 15)]
    assert any(a.cursors[0].epoch < b.cursors[0].epoch for (*_, a, _), (*_, b, _) in pairwise(rows)), "no epoch's end"
    for at in (0, 1, 2, 7, size // 128, *range(len(rows) - 19, len(rows) - 3)):
        resumed = lane(grouped, tmp_path, 1, cursor=rows[at][2], row=at + 1)
        for later in range(at + 1, at + 4):
            ids, edges, cursor, _ = next(resumed)
            assert np.array_equal(ids, rows[later][0]) and cursor == rows[later][2], f"resumed behind row {at}"
            assert np.array_equal(edges, rows[later][1]), f"resumed behind row {at}: documents begin elsewhere"


@pytest.mark.parametrize("lanes", [1, 3])
def test_rows_are_those_of_one_text_at_a_time_across_the_batches(texts, tiny_model, tmp_path, lanes):
    """A part of more than two batches, with texts that end a batch by their length; in three lanes it is cut, and
    each part ends inside a batch. Resumed where a batch begins, inside of it, and behind a long text."""
    short = [text[:50] for text in texts[:300]]
    documents = [*short[:150], "\n".join(texts)[: CHARACTERS + 10], *short[150:160], "", *short[160:]]
    shards = [shard(write_shard(tmp_path / "corpus/a.jsonl", documents))]
    assert len(documents) > 4 * TEXTS and (len(documents) // lanes) % TEXTS not in (0, TEXTS - 1)
    encoder = make_encoder(load_tokenizer(tiny_model))
    assert encoder.engine is not None, "this test is of the batches of a compiled tokenizer"

    def rows_by(encode, number, count, **more):
        one = lane(shards, tmp_path, number, lanes=lanes, row_length=256, encode=encode, **more)
        return [next(one) for _ in range(count)]

    def same(found, wanted) -> bool:
        return all(
            np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and a[2] == b[2]
            for a, b in zip(found, wanted, strict=True)
        )

    for number in range(lanes):
        (part,) = deal(shards, lanes, 0)[0].parts[number::lanes]
        mine = documents[part.first : part.stop]
        ids = [token for text in mine for token in encoder(text)]
        whole = len(ids) // 256
        rows = rows_by(encoder, number, whole + 2)
        assert np.concatenate([row[0] for row in rows])[: len(ids)].tolist() == ids, "a document is missing or moved"
        assert same(rows, rows_by(lambda text: encoder(text), number, whole + 2)), "one text at a time gives other rows"
        inside = [row[2].cursors[0].document - part.first for row in rows[:whole]]
        assert any(0 < place % TEXTS < TEXTS - 1 for place in inside), "no row ends in the middle of a batch"
        for at in sorted({1, whole, *(bisect_left(inside, TEXTS * n) for n in (1, 2))}):
            if at <= whole:
                found = rows_by(encoder, number, whole + 1 - at, cursor=rows[at][2], row=at + 1)
                assert same(found, rows[at + 1 :]), f"lane {number} of {lanes}, resumed behind row {at}"


def test_a_row_that_ends_with_its_document_goes_on_at_the_next(tmp_path):
    shards = [shard(write_shard(tmp_path / "corpus/a.jsonl", ["x" * 15, "y" * 7, "z" * 7]))]
    one = lane(shards, tmp_path, lanes=1, row_length=16)
    rows = [next(one) for _ in range(3)]
    assert rows[0][2] == LaneCursor((Cursor(0, 0, 0, 16),)) and rows[0][0].tolist() == [120] * 15 + [256]
    ids, edges, cursor, _ = next(lane(shards, tmp_path, lanes=1, row_length=16, cursor=rows[0][2], row=1))
    assert ids.tolist() == rows[1][0].tolist() == [121] * 7 + [256] + [122] * 7 + [256]
    assert edges.tolist() == [0, 8, 16] and cursor == rows[1][2]


def test_a_lane_whose_documents_are_all_excluded_refuses(tmp_path):
    book = {"text": "a book", "meta": {"redpajama_set_name": "RedPajamaBook"}}
    shards = [
        replace(shard(write_shard(tmp_path / name, documents)), exclude_domains=("RedPajamaBook",))
        for name, documents in (("a.jsonl", [book, book]), ("b.jsonl", ["kept", book]))
    ]
    lanes = [lane(shards, tmp_path, number, lanes=2, row_length=8) for number in range(2)]
    barren = next(n for n in range(2) if deal(shards, 2, 0)[0].parts[n].shard == 0)
    with pytest.raises(RegrowError, match=rf"lane {barren}: every document of its parts is excluded"):
        next(lanes[barren])
    assert bytes(next(lanes[1 - barren])[0][:4].tolist()) == b"kept", "the other lane has lost its document"
    with pytest.raises(RegrowError, match="excluded"):
        next(lane(shards, tmp_path, barren, lanes=2, row_length=8, cursor=LaneCursor((Cursor(3),))))
    # A tokenised shard keeps the numbers of excluded documents, without tokens.
    write_tokenised(tmp_path / "c.tar", [[], []], about={"vocabulary": 257})
    with pytest.raises(RegrowError, match="excluded"):
        next(lane([shard(tmp_path / "c.tar", tokenised=True)], tmp_path, lanes=1))


def test_a_cursor_of_another_corpus_is_refused(grouped, tmp_path):
    with pytest.raises(RegrowError, match="lane 1: its cursor is at part 9 of 2"):
        next(lane(grouped, tmp_path, 1, cursor=LaneCursor((Cursor(0, 9),))))
    with pytest.raises(RegrowError, match="lane 1: a cursor of 2 sources for 1"):
        lane(grouped, tmp_path, 1, cursor=LaneCursor((Cursor(), Cursor())))


# ---- sources


def test_sources_are_drawn_by_their_weights_without_memory():
    ends = weight_edges((5, 3, 2), 3)
    drawn = {(number, row): draw_source(0, number, row, ends) for number in range(48) for row in range(250)}
    for source, share in enumerate((0.5, 0.3, 0.2)):
        count = sum(found == source for found in drawn.values())
        noise = (len(drawn) * share * (1 - share)) ** 0.5
        assert abs(count - len(drawn) * share) < 4 * noise, f"source {source}: {count} of {len(drawn)} rows"
    lanes = {tuple(drawn[number, row] for row in range(250)) for number in range(48)}
    assert len(lanes) == 48, "two lanes have the same sequence of sources"
    assert drawn[7, 200] == draw_source(0, 7, 200, ends), "the draw has a memory"
    assert any(drawn[7, row] != draw_source(1, 7, row, ends) for row in range(50)), "the seed does not matter"


@pytest.mark.parametrize("weights", [(1.0,), (1, 1, 1), (1, 0), (1, -2), (1, float("nan")), (1, float("inf"))])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(RegrowError, match=r"weights of data\.sources .* 2 sources need a number above 0 each"):
        weight_edges(weights, 2)


def test_rows_come_from_one_source_in_their_proportions(texts, tmp_path):
    """A row is of one source; each source begins anew by itself, and its rows do not depend on the other one."""
    shards = two_sources(tmp_path / "corpus", texts, "jsonl")
    for at, each in enumerate(shards):  # the second source has one letter, and no other has it
        if each.source:
            documents = ["Ж" * len(text) for _, text in read_documents(Path(each.name), "jsonl")]
            shards[at] = shard(write_shard(Path(each.name), documents), 1)
    rows = take(iter(stream(shards, tmp_path, weights=(0.7, 0.3))), 2400)
    foreign = np.array([*"Ж".encode(), 256])
    for row in rows:
        source = draw_source(0, row.lane, row.index // LANES, weight_edges((0.7, 0.3), 2))
        share = np.isin(row.input_ids[row.input_ids != 256], foreign).mean()
        assert share == source or (source == 0 and share < 0.5), f"row {row.index} is not of source {source} alone"
    sources = [int(np.isin(row.input_ids, foreign).all()) for row in rows]
    assert abs(sum(sources) - 720) < 4 * (2400 * 0.21) ** 0.5, f"{sum(sources)} of 2400 rows for a share of 0.3"
    epochs = [tuple(cursor.epoch for cursor in row.cursor.cursors) for row in rows[-LANES:]]
    assert any(abs(a - b) > 1 for a, b in epochs), f"the sources wait for each other's epochs: {epochs}"
    # Other weights draw otherwise, and leave each source's own rows as they are.
    others = take(iter(stream(shards, tmp_path, weights=(1, 4))), 600)
    for number in range(LANES):
        for source in range(2):
            mine = [rows_of(some, number, source, foreign) for some in (rows, others)]
            count = min(map(len, mine))
            assert mine[0][:count] == mine[1][:count], f"lane {number}: source {source} depends on the other one"


def rows_of(rows, number, source, foreign) -> list[bytes]:
    """The rows of a lane that are of one source."""
    return [
        row.input_ids.tobytes()
        for row in rows
        if row.lane == number and np.isin(row.input_ids, foreign).all() == source
    ]
