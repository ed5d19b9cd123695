"""Rows, a store and a teacher, small ones, for the tests of answers that are asked for once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import Cursor, LaneCursor
from pipeline.training.answers import AnswerStore, RowAnswer, hash_row

LANES, LENGTH, SAMPLES, VOCABULARY = 4, 16, 12, 200


def new_store(folder: Path, vocabulary: int = VOCABULARY, samples: int = SAMPLES) -> AnswerStore:
    return AnswerStore(folder, lanes=LANES, row_length=LENGTH, samples=samples, vocabulary=vocabulary)


def rows(start: int, end: int, step: int = 1) -> Iterator[Row]:
    """Seeded rows of two documents each, as a process of ``step`` would read them."""
    for index in range(start, end, step):
        ids = np.random.default_rng(index).integers(0, VOCABULARY, LENGTH)
        cursor = LaneCursor((Cursor(document=index, token=3),), ((0, 1, 2),))
        yield Row(index, ids, index % LANES, cursor, np.array([0, 5, LENGTH], dtype=np.int32))


def made_up(row: Row, vocabulary: int = VOCABULARY) -> RowAnswer:
    """An answer that no teacher gave: between 1 and SAMPLES ids at each position."""
    random = np.random.default_rng(1000 + row.index)
    different = random.integers(1, SAMPLES + 1, LENGTH).astype(np.uint8)
    ids = np.concatenate([np.sort(random.choice(vocabulary, count, replace=False)) for count in different])
    counts = random.integers(1, 200, len(ids)).astype(np.uint8)
    return RowAnswer(hash_row(row.input_ids), ids, counts, different, random.random(LENGTH).astype(np.float16))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store, by its place in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}
