"""The held-out rows that models are judged on: fixed, and spread over the whole held-out set.

They depend on the manifest, the tokenizer and what is asked for alone, so that every machine has the same rows. Files
are streamed, and only those that hold a row are read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from pipeline.data.corpus.calibration import encoded, leading_ids
from pipeline.data.remote.cache import ShardCache
from pipeline.data.remote.contents import read_contents
from pipeline.data.shards import Shard
from pipeline.data.stream.packing import pack
from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError

#: From a text, or ids, to the ids of a document.
Encode = Callable[[str | np.ndarray], list[int]]
#: Of the config, where the BOS policy stands; messages name it.
BOS_KEY = "evaluate.perplexity.held_out.bos"


def held_out_rows(
    shards: Sequence[Shard], encoder: Encoder, *, length: int, bos: str, rows: int | None, cache: Path | ShardCache
) -> torch.Tensor:
    """Held-out documents end to end, cut to rows: ids (at most ``rows``, ``length``) int64, in file order.

    With ``rows`` they stand at even places over the whole set, by the bytes of its files and the text in each. A row
    begins at its place inside a document and goes on through the documents behind it, as training rows do. Only files
    that hold a row are read; each is fetched once, and streamed twice, first to measure its text. The rows of a file
    that turns out to have no text are spread over those that have not been read. Where all have been, they are read
    again, with places by their text alone. A set of too little text for that is packed whole, and an even choice made
    of its rows; ``rows`` None takes them all.

    ``bos``: ``document`` is the training policy (BOS where documents begin, if the tokenizer has that habit),
    ``every`` begins each row with a BOS and has none elsewhere, ``none`` has none at all. The incomplete row at the
    end is dropped. ``cache`` as for ``calibration_sequences``. Raises RegrowError when there is not one full row.
    """
    cache = cache if isinstance(cache, ShardCache) else ShardCache(cache)
    leading = leading_ids(encoder, bos, BOS_KEY)
    room = length - len(leading)

    def encode(content: str | np.ndarray) -> list[int]:
        return encoded(content, encoder, bos)

    packed = None if rows is None else _spread_rows(_pieces(shards), cache, rows, room, encode)
    if packed is None:
        packed = _even_choice((row for row, _, _ in pack(_all_documents(shards, cache, encode), room)), rows)
    if not packed:
        tokens = sum(len(ids) for _, _, ids in _all_documents(shards, cache, encode))
        raise RegrowError(f"data.held_out: {tokens:,} tokens in all, not one row of {length:,}")
    return torch.from_numpy(np.stack([np.concatenate([np.array(leading, dtype=np.int64), row]) for row in packed]))


@dataclass(frozen=True)
class RowsAsked:
    """Rows that will be asked of the held-out set: the config's ``key`` of their ``length``, and their BOS policy."""

    key: str
    length: int
    bos: str


def require_one_row(
    shards: Sequence[Shard], encoder: Encoder, asked: Sequence[RowsAsked], cache: Path | ShardCache
) -> None:
    """RegrowError naming the keys whose rows are longer than the whole held-out set; read as far as the longest row.

    Also where a row is to begin with a BOS that the tokenizer does not have. ``cache`` as for ``held_out_rows``.
    """
    cache = cache if isinstance(cache, ShardCache) else ShardCache(cache)
    short = {rows: rows.length - len(leading_ids(encoder, rows.bos, BOS_KEY)) for rows in asked}
    tokens = 0
    with closing(_all_documents(shards, cache, lambda content: encoded(content, encoder, "document"))) as documents:
        for _, _, ids in documents:
            tokens += len(ids)
            of_text = len(ids) - (encoder.bos is not None and len(ids) > 0)
            short = {rows: lack - (len(ids) if rows.bos == "document" else of_text) for rows, lack in short.items()}
            short = {rows: lack for rows, lack in short.items() if lack > 0}
            if not short:
                return
    longest = dict(sorted((rows.key, rows.length) for rows in short))
    listed = " or ".join(f"{key} ({length:,})" for key, length in longest.items())
    raise RegrowError(
        f"data.held_out: {tokens:,} tokens in all, not one row of {listed}; add documents to it, or lower "
        f"{'that' if len(longest) == 1 else 'those'}"
    )


def _all_documents(
    shards: Sequence[Shard], cache: ShardCache, encode: Encode
) -> Iterator[tuple[tuple[int, int, int], int, list[int]]]:
    """Every document of the set, for ``pack``."""
    for number, shard in enumerate(shards):
        with closing(read_contents(shard, cache)) as contents:
            for index, content in contents:
                yield (0, number, index), 0, encode(content)


@dataclass(frozen=True)
class _Piece:
    """What is fetched and read at a time: a file, or a row group of a remote parquet file. ``size``: what its share of
    the rows goes by."""

    number: int
    shard: Shard
    group: int | None
    size: float


def _pieces(shards: Sequence[Shard]) -> list[_Piece]:
    parts: list[tuple[Shard, int | None, float]] = []
    for shard in shards:
        if shard.kind == "local" or shard.groups is None:
            parts.append((shard, None, shard.bytes))
        else:
            share = shard.bytes / max(1, sum(shard.groups))
            parts += [(shard, group, share * documents) for group, documents in enumerate(shard.groups)]
    return [_Piece(number, *part) for number, part in enumerate(parts) if part[2] > 0]


class _Reading:
    """The documents of pieces, forward, from wherever one goes to. What is passed over whole is not opened; a remote
    piece's copy is given back when it has been read or the reading is closed.

    ``text`` has, by the piece's number, the length of every piece that was opened: characters, or tokens where it holds
    those.
    """

    def __init__(self, pieces: Sequence[_Piece], cache: ShardCache, encode: Encode):
        self._pieces, self._cache, self._encode = pieces, cache, encode
        self._at, self._contents = -1, None  # Which of the pieces is open, and what is left of it.
        self._document: tuple[int, list[int]] | None = None  # The one that was begun: index, ids.
        self._taken = 0  # Tokens of it that are used up.
        self._begin = self._end = 0  # Where in the piece's text it stands.
        self.text: dict[int, int] = {}

    def go_to(self, at: int, part: float) -> bool:
        """Go on at ``part`` (0 to 1) of the text of piece ``at``, or from here where that is behind. False where the
        piece has no text."""
        if at > self._at:
            self._open(at)
        length = self.text[self._pieces[at].number]
        if at == self._at and length:
            target = min(int(part * length), length - 1)
            if self._end <= target:
                self._next(target)
            share = (target - self._begin) / (self._end - self._begin)
            self._taken = max(self._taken, int(share * len(self._document[1])))
        return length > 0

    def row(self, room: int) -> tuple[tuple[int, int, int], np.ndarray] | None:
        """The next ``room`` tokens int64, and the place where they begin; None where so many are not left."""
        begin = None

        def documents() -> Iterator[tuple[tuple[int, int, int], int, list[int]]]:
            nonlocal begin
            while self._document is not None or self._next():
                index, ids = self._document
                begin = begin or (
                    (self._pieces[self._at].number, index, self._taken) if self._taken < len(ids) else None
                )
                yield (0, 0, index), self._taken, ids
                self._document, self._taken = None, 0

        filled = next(pack(documents(), room), None)
        if filled is None:
            return None
        self._taken = filled[2].token
        return begin, filled[0]

    def close(self) -> None:
        """Give back what is open."""
        if self._contents is not None:
            self._contents.close()
            self._contents = None
            piece = self._pieces[self._at]
            self._cache.drop(piece.shard, piece.group)

    def _next(self, target: int = 0) -> bool:
        """Begin the next document that ends behind ``target`` of its piece's text; False where there is none."""
        while True:
            for index, content in self._contents or ():
                self._begin, self._end = self._end, self._end + len(content)
                if self._end > target:
                    self._document, self._taken = (index, self._encode(content)), 0
                    return True
            if self._at + 1 >= len(self._pieces):
                return False
            self._open(self._at + 1)

    def _open(self, at: int) -> None:
        self.close()
        piece = self._pieces[at]
        self._cache.open(piece.shard, piece.group)  # Held over both readings: it is fetched once.
        self._at, self._document, self._taken, self._begin, self._end = at, None, 0, 0, 0
        self._contents = read_contents(piece.shard, self._cache, piece.group)
        self.text[piece.number] = sum(len(content) for _, content in self._contents)
        self._contents = read_contents(piece.shard, self._cache, piece.group)


def _spread_rows(
    pieces: Sequence[_Piece], cache: ShardCache, count: int, room: int, encode: Encode
) -> list[np.ndarray] | None:
    """``count`` rows (room,) int64 from evenly spaced places; None where they are too near for whole rows."""
    found: list[tuple[tuple[int, int, int], np.ndarray]] = []
    text: dict[int, int] = {}
    unread = pieces
    while unread and len(found) < count:
        rows, lengths = _rows_at_even_places(unread, cache, count - len(found), room, encode)
        found, text = found + rows, text | lengths
        unread = [piece for piece in unread if piece.number not in text]
    sized = [replace(piece, size=text[piece.number]) for piece in pieces if text.get(piece.number)]
    if len(found) < count and sized:  # All have been read, so the text of all is known.
        found, _ = _rows_at_even_places(sized, cache, count, room, encode)
    return [row for _, row in sorted(found, key=lambda item: item[0])] if len(found) == count else None


def _rows_at_even_places(
    pieces: Sequence[_Piece], cache: ShardCache, count: int, room: int, encode: Encode
) -> tuple[list[tuple[tuple[int, int, int], np.ndarray]], dict[int, int]]:
    """At most ``count`` rows, each with (piece, document, token) where it begins: those are missing whose piece has no
    text, or behind which the text ends. And the length of the text of each piece that was opened, by its number."""
    ends = list(accumulate(piece.size for piece in pieces))
    rows = []
    with closing(_Reading(pieces, cache, encode)) as reading:
        for number in range(count):
            place = (number + 0.5) / count * ends[-1]
            at = bisect_right(ends, place)
            if not reading.go_to(at, 1 - (ends[at] - place) / pieces[at].size):
                continue
            row = reading.row(room)
            if row is None:
                break
            rows.append(row)
    return rows, reading.text


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
