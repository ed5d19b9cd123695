"""Packing: rows are the documents end to end, and say where each begins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.stream.packing import Row, pack
from pipeline.data.stream.position import Cursor, LaneCursor


def packed(lengths, row_length, *, taken=0):
    """Rows of documents of these lengths whose ids say which document and token they are."""
    documents = [
        ((0, number, number * 2), taken if number == 0 else 0, np.arange(length) + 1000 * number)
        for number, length in enumerate(lengths)
    ]
    return list(pack(documents, row_length))


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 12))
def test_rows_are_the_documents_and_their_edges_are_the_documents(lengths, row_length):
    rows = packed(lengths, row_length)
    assert len(rows) == sum(lengths) // row_length, "a row is missing, or an incomplete one was given out"
    everything = np.concatenate([np.arange(length) + 1000 * number for number, length in enumerate(lengths)] or [[]])
    ids = np.concatenate([row for row, _, _ in rows] or [[]])
    assert ids.tolist() == everything[: len(ids)].tolist(), "the rows are not the documents end to end"
    done = 0
    for row, edges, cursor in rows:
        assert row.dtype == np.int64 and edges.dtype == np.int32 and row.shape == (row_length,)
        begins = [0, *(np.flatnonzero(row[1:] // 1000 != row[:-1] // 1000) + 1), row_length]
        assert edges.tolist() == begins, f"documents begin at {begins}, cu_seqlens says {edges}"
        done += row_length
        number = int(row[-1]) // 1000
        assert cursor == Cursor(0, number, number * 2, int(row[-1]) % 1000 + 1), "the cursor is not behind the row"


def test_a_document_is_taken_from_its_token_on():
    (ids, edges, cursor), *_ = packed([9, 4], 6, taken=5)
    assert ids.tolist() == [5, 6, 7, 8, 1000, 1001] and edges.tolist() == [0, 4, 6] and cursor == Cursor(0, 1, 2, 2)


def test_rows_do_not_share_memory():
    rows = packed([40], 8)
    assert not any(np.shares_memory(a[0], b[0]) for a, b in pairwise(rows))


def test_a_row_is_one_document_where_nothing_else_is_said():
    plain = Row(3, np.arange(7), 1, LaneCursor())
    assert plain.cu_seqlens.tolist() == [0, 7] and plain.cu_seqlens.dtype == np.int32, "one document"
