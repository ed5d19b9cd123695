"""Lanes: the canonical order of the training rows, whatever the number of processes.

Row g of a run belongs to lane g mod L, with L fixed for the life of the run. A lane owns a fixed subset of the
corpus's parts, orders them anew in every epoch by a hash, reads documents in file order, and packs them into rows. A
row carries the cursor behind it, so a checkpoint keeps what the trainer consumed, not what was prefetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.data.documents import read_documents
from pipeline.data.shards import Shard, fetch
from pipeline.run import RegrowError


@dataclass(frozen=True)
class Part:
    """Documents ``first`` to ``stop`` (None: to the end) of shard number ``shard``."""

    shard: int
    first: int
    stop: int | None


@dataclass(frozen=True)
class Cursor:
    """The first token that a lane has not handed out: its epoch, part (in that epoch's order), document, token."""

    epoch: int = 0
    part: int = 0
    document: int = 0
    token: int = 0


@dataclass(frozen=True)
class Row:
    """One training row: global number, ids (T,) int64, and the lane with its cursor behind this row."""

    index: int
    input_ids: np.ndarray
    lane: int
    cursor: Cursor


def split_into_parts(shards: Sequence[Shard], lanes: int) -> list[Part]:
    """At least ``lanes`` parts: whole shards, or ranges of documents where there are fewer shards than lanes.

    Raises RegrowError with the largest possible number of lanes when the corpus is too small for ``lanes``.
    """
    if len(shards) >= lanes:
        return [Part(number, 0, None) for number in range(len(shards))]
    counts = [shard.documents for shard in shards]
    if None in counts:
        raise RegrowError(
            f"data.lanes is {lanes}, but the corpus has {len(shards)} shards of unknown length; set at most "
            f"data.lanes={len(shards)}"
        )
    total = sum(counts)
    if total < lanes:
        raise RegrowError(f"data.lanes is {lanes}, but the corpus has {total} documents; set at most {total}")
    pieces = [max(1, lanes * count // total) for count in counts]
    while sum(pieces) < lanes:
        # The shard whose pieces are longest is cut once more.
        longest = max(range(len(shards)), key=lambda i: (counts[i] / pieces[i], -i))
        pieces[longest] += 1
    parts = []
    for number, (count, cut) in enumerate(zip(counts, pieces, strict=True)):
        edges = [count * i // cut for i in range(cut + 1)]
        parts.extend(Part(number, first, stop) for first, stop in pairwise(edges))
    return parts


def _order(seed: int, *names: object) -> bytes:
    return hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()


class Lane:
    """An endless stream of rows from one lane, started at a cursor."""

    def __init__(
        self,
        number: int,
        *,
        lanes: int,
        shards: Sequence[Shard],
        encode: Callable[[str], list[int]],
        row_length: int,
        seed: int,
        cache: Path,
        cursor: Cursor = Cursor(),
    ):
        self.number = number
        self.shards = shards
        self.encode = encode
        self.row_length = row_length
        self.seed = seed
        self.cache = cache
        parts = split_into_parts(shards, lanes)
        shuffled = sorted(parts, key=lambda part: _order(seed, "parts", part.shard, part.first))
        self.parts = shuffled[number::lanes]
        self._rows = self._pack(cursor)

    def __next__(self) -> tuple[np.ndarray, Cursor]:
        """The next row's ids (row_length,) int64 and the cursor behind it."""
        return next(self._rows)

    def _documents(self, start: Cursor) -> Iterator[tuple[Cursor, list[int]]]:
        """Encoded documents from the cursor's on, with the place where each begins; epoch after epoch."""
        epoch, number, document = start.epoch, start.part, start.document
        while True:
            ordered = sorted(self.parts, key=lambda p: _order(self.seed, self.number, epoch, p.shard, p.first))
            found = False
            while number < len(ordered):
                part, shard = ordered[number], self.shards[ordered[number].shard]
                path = fetch(shard, self.cache)
                first = max(part.first, document)
                for index, text in read_documents(path, shard.format, shard.text_key, shard.exclude_domains, first):
                    if part.stop is not None and index >= part.stop:
                        break
                    found = True
                    yield Cursor(epoch, number, index), self.encode(text)
                number, document = number + 1, 0
            if not found and epoch > start.epoch:
                raise RegrowError(f"lane {self.number}: every document of its parts is excluded; use fewer data.lanes")
            epoch, number = epoch + 1, 0

    def _pack(self, start: Cursor) -> Iterator[tuple[np.ndarray, Cursor]]:
        """Documents end to end, cut to rows; a cut document goes on in the next row."""
        row, filled = np.empty(self.row_length, dtype=np.int64), 0
        skip = start.token
        for place, ids in self._documents(start):
            taken, skip = skip, 0
            while taken < len(ids):
                piece = ids[taken : taken + self.row_length - filled]
                row[filled : filled + len(piece)] = piece
                filled, taken = filled + len(piece), taken + len(piece)
                if filled == self.row_length:
                    yield row, Cursor(place.epoch, place.part, place.document, taken)
                    row, filled = np.empty(self.row_length, dtype=np.int64), 0
