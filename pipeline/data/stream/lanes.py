"""Lanes: the canonical order of the training rows, whatever the number of processes.

Row g of a run belongs to lane g mod L, with L fixed for the life of a run. A lane owns a fixed subset of every
source's parts, orders them anew in every epoch by a hash, and reads documents in file order. Row k of a lane comes
from one source, drawn by (seed, lane, k) alone; each source's documents are packed by themselves, those of instruction
data stand one in a row. A row carries the cursor behind it, so a checkpoint keeps what the trainer consumed, not what
was prefetched.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from pipeline.data.corpus.overlap import Search
from pipeline.data.shards import Shard
from pipeline.data.stream.examples import one_a_row
from pipeline.data.stream.packing import pack
from pipeline.data.stream.parts import Dealt, deal, draw
from pipeline.data.stream.position import Cursor, LaneCursor
from pipeline.data.stream.strands import Reading, Strand
from pipeline.errors import RegrowError


def weight_edges(weights: Sequence[float] | None, sources: int) -> list[float]:
    """Where the share of each source in [0, 1) ends; None: all alike. Raises RegrowError unless each has a weight
    above 0."""
    weights = [1.0] * sources if weights is None else list(weights)
    if len(weights) != sources or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise RegrowError(f"the weights of data.sources are {weights}; {sources} sources need a number above 0 each")
    return [edge / sum(weights) for edge in accumulate(weights)]


def draw_source(seed: int, lane: int, row: int, edges: Sequence[float]) -> int:
    """The source of row number ``row`` of a lane."""
    uniform = (int.from_bytes(draw(seed, "source", lane, row)[:8], "big") >> 11) / 2**53
    return min(bisect_right(edges, uniform), len(edges) - 1)


@dataclass(frozen=True)
class Mixture:
    """The sources of a corpus as all its lanes read them: what ``deal`` gave, where the weight of each ends in [0, 1),
    and what finds held-out documents in the remote text of each (None: nothing is searched for)."""

    lanes: int
    sources: Sequence[Dealt]
    edges: Sequence[float]
    searches: Sequence[Search | None]

    @classmethod
    def of(cls, shards: Sequence[Shard], lanes: int, weights: Sequence[float] | None, reading: Reading) -> Mixture:
        """The mixture of a corpus's shards; ``weights`` are relative, one for each source (None: all alike)."""
        sources = deal(shards, lanes, reading.seed)
        excluded = [dealt.shards[0].exclude_domains for dealt in sources]
        searches = [Search(reading.held_out, domains) if reading.held_out else None for domains in excluded]
        return cls(lanes, sources, weight_edges(weights, len(sources)), searches)


class Lane:
    """An endless stream of rows from one lane: from its row number ``row`` on, behind ``cursor``.

    Raises RegrowError on a cursor that does not fit the corpus, and when there is nothing left to read.
    """

    def __init__(
        self, number: int, mixture: Mixture, reading: Reading, *, row: int = 0, cursor: LaneCursor | None = None
    ):
        sources = mixture.sources
        cursor = cursor or LaneCursor((Cursor(),) * len(sources))
        if len(cursor.cursors) != len(sources):
            raise RegrowError(f"lane {number}: a cursor of {len(cursor.cursors)} sources for {len(sources)} sources")
        self.number, self.seed, self.edges, self.row = number, reading.seed, mixture.edges, row
        self._cursors = list(cursor.cursors)
        self._strands = [
            Strand(
                number,
                dealt,
                dealt.parts[number :: mixture.lanes],
                reading,
                search=mixture.searches[source],
                start=start,
                skipped=[part[1:] for part in cursor.skipped if part[0] == source],
            )
            for source, (dealt, start) in enumerate(zip(sources, cursor.cursors, strict=True))
        ]
        self._rows = [self._rows_of(strand, reading) for strand in self._strands]

    @staticmethod
    def _rows_of(strand: Strand, reading: Reading) -> Iterator[tuple[Any, ...]]:
        if strand.dealt.of_examples:
            return one_a_row(strand.documents(), reading.row_length, reading.encode.separator)
        return pack(strand.documents(), reading.row_length)

    def __next__(self) -> tuple[np.ndarray, np.ndarray, LaneCursor, np.ndarray | None]:
        """The next row's ids (row_length,) int64, its cu_seqlens int32, the cursor behind it, and which tokens are
        targets (row_length,) bool: None where they all are."""
        source = draw_source(self.seed, self.number, self.row, self.edges) if len(self.edges) > 1 else 0
        ids, cu_seqlens, self._cursors[source], *counted = next(self._rows[source])
        self.row += 1
        skipped = tuple((number, *part) for number, strand in enumerate(self._strands) for part in strand.skipped)
        return ids, cu_seqlens, LaneCursor(tuple(self._cursors), skipped), counted[0] if counted else None
