"""The held-out rows that models are judged on: fixed, and spread over the whole held-out set.

They depend on the manifest, the tokenizer and what is asked for alone, so that every machine has the same rows. Files
are streamed, and only those that hold a row are read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from pipeline.data.contents import read_contents
from pipeline.data.fetching import ShardCache
from pipeline.data.packing import pack
from pipeline.data.samples import encoded, leading_ids
from pipeline.data.shards import Shard
from pipeline.data.tokens import Encoder
from pipeline.run import RegrowError

#: Multiples of it, modulo 1, are spread evenly however many there are.
GOLDEN = (5**0.5 - 1) / 2


def held_out_rows(
    shards: Sequence[Shard], encoder: Encoder, *, length: int, bos: str, rows: int | None, cache: Path | ShardCache
) -> torch.Tensor:
    """Held-out documents end to end, cut to rows: ids (at most ``rows``, ``length``) int64, in file order.

    With ``rows`` they are spread evenly over the whole set, by the bytes of its files and the documents in each. A row
    begins somewhere in the document at its place and goes on through the documents behind it, as training rows do. No
    file is read that has no row; one whose documents the manifest does not count is counted. A set of too little text
    for that is packed whole, and an even choice made of its rows; ``rows`` None takes them all.

    ``bos``: ``document`` is the training policy (BOS where documents begin, if the tokenizer has that habit),
    ``every`` begins each row with a BOS and has none elsewhere, ``none`` has none at all. The incomplete row at the
    end is dropped. ``cache`` as for ``calibration_sequences``. Raises RegrowError when there is not one full row.
    """
    cache = cache if isinstance(cache, ShardCache) else ShardCache(cache)
    leading = leading_ids(encoder, bos, "evaluate.perplexity.bos")
    room = length - len(leading)
    pieces = _pieces(shards)

    def encode(content: str | np.ndarray) -> list[int]:
        return encoded(content, encoder, bos)

    packed = None if rows is None else _spread_rows(pieces, cache, rows, room, encode)
    if packed is None:
        with closing(_Reading(pieces, cache)) as reading:
            packed = _even_choice((row for row, _, _ in pack(_documents(reading, encode), room)), rows)
    if not packed:
        with closing(_Reading(pieces, cache)) as reading:
            tokens = sum(len(ids) for _, _, ids in _documents(reading, encode))
        raise RegrowError(f"held-out documents: {tokens} tokens in all, not one row of {length}")
    return torch.from_numpy(np.stack([np.concatenate([np.array(leading, dtype=np.int64), row]) for row in packed]))


@dataclass(frozen=True)
class _Piece:
    """What is fetched and read at a time: a file, or a row group of a remote parquet file. ``first``: the index of its
    first document; ``documents`` is None where unknown."""

    shard: Shard
    group: int | None
    bytes: float
    first: int
    documents: int | None


def _pieces(shards: Sequence[Shard]) -> list[_Piece]:
    pieces = []
    for shard in shards:
        if shard.kind == "local" or shard.groups is None:
            pieces.append(_Piece(shard, None, shard.bytes, 0, shard.documents))
        else:
            before = accumulate(shard.groups, initial=0)
            share = shard.bytes / max(1, sum(shard.groups))
            pieces += [_Piece(shard, group, share * documents, first, documents)
                       for (group, documents), first in zip(enumerate(shard.groups), before, strict=False)]  # fmt: skip
    return pieces


class _Reading:
    """The documents of pieces, forward: ((piece, index), content), from wherever one goes to. What is passed over whole
    is not opened; a remote piece's copy is given back when it has been read or the reading is closed."""

    def __init__(self, pieces: Sequence[_Piece], cache: ShardCache):
        self._pieces, self._cache = pieces, cache
        self._number, self._contents = -1, None
        self._count = 0
        self._last, self._next = -1, 0  # Indices of documents: the last that was read, the next to give.

    def go_to(self, number: int, part: float) -> bool:
        """Go on at the document that stands at ``part`` (0 to 1) of piece ``number``; False where that is behind."""
        if number < self._number:
            return False
        if number > self._number:
            self._open(number)
        self._next = self._pieces[number].first + int(part * self._count)
        return self._next > self._last

    def __iter__(self) -> Iterator[tuple[tuple[int, int], str | np.ndarray]]:
        while True:
            for index, content in self._contents or ():
                self._last = index
                if index >= self._next:
                    yield (self._number, index), content
            if self._number + 1 >= len(self._pieces):
                return
            self._open(self._number + 1)

    def close(self) -> None:
        """Give back what is open."""
        if self._contents is not None:
            self._contents.close()
            self._contents = None
            self._cache.drop(self._pieces[self._number].shard, self._pieces[self._number].group)

    def _open(self, number: int) -> None:
        self.close()
        piece = self._pieces[number]
        self._cache.open(piece.shard, piece.group)  # Held over the counting: it is fetched once.
        self._number, self._last, self._next = number, piece.first - 1, piece.first
        self._contents = read_contents(piece.shard, self._cache, piece.group)
        self._count = piece.documents
        if piece.documents is None:
            self._count = 1 + max((index for index, _ in self._contents), default=-1)
            self._contents = read_contents(piece.shard, self._cache, piece.group)


def _documents(
    reading: _Reading, encode: Callable[[str | np.ndarray], list[int]], skip: float = 0.0
) -> Iterator[tuple[tuple[int, int, int], int, list[int]]]:
    """What is read, for ``pack``; of the first document the share ``skip`` of its tokens is passed over."""
    for place, content in reading:
        ids = encode(content)
        yield (0, *place), int(skip * len(ids)), ids
        skip = 0.0


def _spread_rows(
    pieces: Sequence[_Piece], cache: ShardCache, count: int, room: int, encode: Callable[[str | np.ndarray], list[int]]
) -> list[np.ndarray] | None:
    """``count`` rows (room,) int64 from evenly spaced places; None where they are too near for whole rows."""
    ends = list(accumulate(piece.bytes for piece in pieces))
    rows = []
    with closing(_Reading(pieces, cache)) as reading:
        for row in range(count):
            place = (row + 0.5) / count * ends[-1]
            number = bisect_right(ends, place)
            part = 1 - (ends[number] - place) / pieces[number].bytes
            if not reading.go_to(number, part):
                return None
            filled = next(pack(_documents(reading, encode, row * GOLDEN % 1), room), None)
            if filled is None:
                return None
            rows.append(filled[0])
    return rows


def _even_choice(rows: Iterable[np.ndarray], count: int | None) -> list[np.ndarray]:
    """``count`` of the rows, evenly spaced and in order, or all; never more than twice ``count`` are held."""
    kept: list[np.ndarray] = []
    step = 1
    for number, row in enumerate(rows):
        if number % step == 0:
            kept.append(row)
        if count is not None and len(kept) > 2 * count:
            kept, step = kept[::2], 2 * step
    if count is None or len(kept) <= count:
        return kept
    return [kept[number * len(kept) // count] for number in range(count)]
