"""Strands: what one lane reads of one source, part after part and epoch after epoch, as token ids.

A part is looked through before its first document is served: what is damaged ends the strand or is left out whole, and
a document that is held out ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.corpus.overlap import Search, Twins, refuse_overlap
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import Census, check_documents, read_documents
from pipeline.data.formats.tokenised import read_tokenised, require_same_ids
from pipeline.data.instructions import Form
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.stream.examples import encode_examples
from pipeline.data.stream.parts import Dealt, Part, shuffle
from pipeline.data.stream.position import Cursor
from pipeline.data.texts import counted, refuse_no_text
from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError

#: So many texts, or texts of so many characters, are tokenized together: little beside what a lane reads of a part.
TEXTS, CHARACTERS = 64, 2**16


@dataclass(frozen=True)
class Reading:
    """How documents become rows, the same for every lane and source of a run.

    encode: from a text to the ids of its document. row_length: tokens in a row. seed: of the order. cache: where
    remote shards are fetched to. on_damage: ``raise`` ends at a damaged part with DamagedShard; ``skip`` leaves it out
    whole, for ever, and records that in the cursor. about: what tokenised shards must say of their ids (None:
    anything). held_out: hashes of the documents that remote text is searched for, which end the stream.
    """

    encode: Callable[[str], list[int]]
    row_length: int
    seed: int
    cache: ShardCache
    on_damage: str = "raise"
    about: Mapping[str, Any] | None = None
    held_out: Mapping[bytes, str] | None = None


class Strand:
    """What one lane reads of one source from ``start`` on: documents of its parts as token ids, epoch after epoch.

    ``search`` finds held-out documents in remote text. ``skipped`` holds the (shard, first document) of parts that are
    left out, and grows when more are found damaged.
    The first part is fetched in the background from now on, and each further one while that before it is read.
    """

    def __init__(
        self,
        lane: int,
        dealt: Dealt,
        parts: Sequence[Part],
        reading: Reading,
        search: Search | None,
        start: Cursor,
        skipped: list[tuple[int, int]],
    ):
        if start.part >= len(parts):
            raise RegrowError(f"lane {lane}: its cursor is at part {start.part} of {len(parts)}")
        self.lane, self.dealt, self.parts, self.reading = lane, dealt, parts, reading
        self.search, self.start, self.skipped = search, start, skipped
        self._held: tuple[Shard, int | None] | None = None
        self._fetch_ahead(start.epoch, self._ordered(start.epoch)[start.part :])

    def documents(self) -> Iterator[tuple[tuple[int, int, int], int, Any]]:
        """((epoch, part, document), first token to take, ids) of every document, without end; of instruction data an
        Example for the ids."""
        start = self.start
        epoch, begin, found = start.epoch, start.part, False
        while True:
            ordered = self._ordered(epoch)
            for number in range(begin, len(ordered)):
                part = ordered[number]
                path = self._open(part)
                if path is None:
                    continue
                self._fetch_ahead(epoch, ordered[number + 1 :])
                resumed = (epoch, number) == (start.epoch, start.part)
                for document, ids in self._read(part, path, max(part.first, start.document if resumed else 0)):
                    taken = start.token if resumed and document == start.document else 0
                    found = found or len(ids) > 0
                    yield (epoch, number, document), taken, ids
            if not found and epoch > start.epoch:
                raise RegrowError(
                    f"lane {self.lane}: every document of its parts is excluded, without text, or left out as damaged; "
                    "repair the shards and start a new run (run.name), or one with fewer data.lanes"
                )
            epoch, begin, found = epoch + 1, 0, False

    def _ordered(self, epoch: int) -> list[Part]:
        return shuffle(self.parts, self.reading.seed, self.lane, epoch, *self.dealt.names)

    def _fetch_ahead(self, epoch: int, parts: Sequence[Part]) -> None:
        """Begin to fetch the first of the epoch's remaining parts, or the first of the next epoch's."""
        waiting = self._kept(parts) or self._kept(self._ordered(epoch + 1))
        if waiting:
            self.reading.cache.ahead(*self._file(waiting[0]))

    def _kept(self, parts: Sequence[Part]) -> list[Part]:
        return [part for part in parts if (part.shard, part.first) not in self.skipped]

    def _file(self, part: Part) -> tuple[Shard, int | None]:
        """What the cache is asked for: of a remote parquet file one row group is fetched."""
        shard = self.dealt.shards[part.shard]
        return shard, None if shard.kind == "local" else part.group

    def _open(self, part: Part) -> Path | None:
        """The part's file, verified and known to decode to its end; None when the part is left out."""
        if (part.shard, part.first) in self.skipped:
            return None
        shard, group = self._file(part)
        try:
            path = self.reading.cache.open(shard, group)
            # Only now: where the next part is of the same file, it is not fetched again.
            if self._held is not None:
                self.reading.cache.drop(*self._held)
            self._held = shard, group
            if shard.format == "tokenised" and self.reading.about is not None:
                require_same_ids(path, shard.name, self.reading.about)
            # The manifest was made by decoding local files whole, and these are the same bytes.
            if shard.kind != "local" or shard.sha256 is None or shard.documents is None:
                _check_whole(path, shard, group, self.search)
        except DamagedShard:
            if self.reading.on_damage == "raise":
                raise
            self.skipped.append((part.shard, part.first))
            return None
        return path

    def _read(self, part: Part, path: Path, first: int) -> Iterator[tuple[int, Any]]:
        """(index in the shard, ids) of the part's documents from document ``first`` of the shard on."""
        shard, group = self._file(part)
        if shard.format == "tokenised":
            return _until(part.stop, read_tokenised(path, first))
        before = _before(shard, group)
        texts = read_documents(
            path, shard.format, shard.text_key, shard.exclude_domains, first - before, shard.on_no_text
        )
        return self._encoded(_until(part.stop, ((before + index, text) for index, text in texts)))

    def _encoded(self, texts: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        """(index, ids) for (index, text): a few texts in each call of the tokenizer, which costs some ten tokens."""
        batch: list[tuple[int, str]] = []
        characters = 0
        for index, text in texts:
            batch.append((index, text))
            characters += len(text)
            if characters >= CHARACTERS or len(batch) == TEXTS:
                yield from self._encode(batch)
                batch, characters = [], 0
        yield from self._encode(batch)

    def _encode(self, batch: Sequence[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        texts = [text for _, text in batch]
        encode = self.reading.encode
        if self.dealt.of_examples:
            yield from zip([index for index, _ in batch], encode_examples(encode, texts), strict=True)
            return
        found = encode.batch(texts) if isinstance(encode, Encoder) else map(encode, texts)
        for (index, _), ids in zip(batch, found, strict=True):
            yield index, np.array(ids, dtype=np.int64)


def _until(stop: int | None, documents: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Those before document ``stop``."""
    for index, content in documents:
        if stop is not None and index >= stop:
            return
        yield index, content
        if index + 1 == stop:
            # Not one document further: it may be the first of another row group.
            return


def _check_whole(path: Path, shard: Shard, group: int | None, search: Search | None) -> None:
    """Decode a file to its end before its first document is served. Raises DamagedShard, and RegrowError where a
    document of it is held out, or a record has no text and all must have one."""
    stated = shard.documents if group is None else shard.groups[group]
    status = path.stat()
    try:
        what = (status.st_size, status.st_mtime_ns, shard.format, shard.text_key)
        census, twins = _look_through(path, *what, search, _before(shard, group))
    except RegrowError as error:
        if shard.kind == "local":
            raise
        # The copy has another name than what must be replaced.
        raise type(error)(f"shard {shard.name}: {error}") from None
    found = census.documents
    if stated not in (None, found):
        raise DamagedShard(f"shard {shard.name}: {found} documents, the manifest says {stated}; it was replaced")
    if census.without_text and shard.on_no_text == "raise":
        raise refuse_no_text(
            shard.name, _before(shard, group) + census.first_without_text, f"{counted(census.without_text)}, the first"
        )
    refuse_overlap([(shard, twins)])


@lru_cache(64)
def _look_through(
    path: Path, size: int, modified: int, format: str, text_key: str | Form, search: Search | None, before: int
) -> tuple[Census, Twins]:
    """What a file holds, and what of it is held out; decoded once in a process: many lanes may read parts of it."""
    twins = Twins()
    return check_documents(path, format, text_key, search.watch(twins, before) if search else None), twins


def _before(shard: Shard, group: int | None) -> int:
    """Documents of the shard before a row group that was fetched alone, which counts its own from 0."""
    return sum(shard.groups[:group]) if group else 0
