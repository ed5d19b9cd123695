"""Packing: documents laid end to end and cut into rows of one length.

A document that does not fit goes on in the next row, so no token is lost or padded. A row says where documents begin
in it, for attention that stays within documents; whatever was not handed out is read again from the cursor, so that
nothing but the cursor needs to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.stream.position import Cursor, LaneCursor


@dataclass(frozen=True)
class Row:
    """One training row: its number in the run, ids (T,) int64, its lane, the lane's cursor behind this row, and
    ``cu_seqlens`` (documents + 1,) int32: 0, where each further document begins, T. One document where not given.
    ``counted`` (T,) bool: which tokens may be targets. Of a corpus with instruction data every row has it, of another
    none."""

    index: int
    input_ids: np.ndarray
    lane: int
    cursor: LaneCursor
    cu_seqlens: np.ndarray | None = None
    counted: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.cu_seqlens is None:
            object.__setattr__(self, "cu_seqlens", np.array([0, len(self.input_ids)], dtype=np.int32))


def pack(
    documents: Iterable[tuple[tuple[int, int, int], int, Any]], row_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Cursor]]:
    """Rows: ids (row_length,) int64, cu_seqlens int32, and the cursor behind the row.

    A document is ((epoch, part, document), first token to take, ids): a sequence of numbers that can be sliced. One
    without tokens leaves no trace. What is left when the documents end is not a row.
    """
    row, filled, begins = np.empty(row_length, dtype=np.int64), 0, []
    for place, taken, ids in documents:
        while taken < len(ids):
            piece = ids[taken : taken + row_length - filled]
            row[filled : filled + len(piece)] = piece
            begins.append(filled)
            filled, taken = filled + len(piece), taken + len(piece)
            if filled == row_length:
                yield row, np.array([*begins, row_length], dtype=np.int32), Cursor(*place, taken)
                row, filled, begins = np.empty(row_length, dtype=np.int64), 0, []
