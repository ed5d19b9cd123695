"""Parts: the pieces of a corpus that are dealt to the lanes once, for the life of a run.

A part is a file, a row group of a parquet file or, in a corpus with fewer of these than lanes, a range of documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pipeline.data.instructions import Form
from pipeline.data.shards import Shard
from pipeline.errors import RegrowError


@dataclass(frozen=True)
class Part:
    """Documents ``first`` to ``stop`` (None: to the end) of shard number ``shard`` of its source; ``group`` is the
    row group of a parquet file that holds them, where the manifest knows it."""

    shard: int
    first: int
    stop: int | None
    group: int | None = None


def split_into_parts(shards: Sequence[Shard], lanes: int) -> list[Part]:
    """At least ``lanes`` parts of one source's shards: files or row groups, cut where there are fewer than lanes.

    Raises RegrowError with the largest possible number of lanes when the source is too small for ``lanes``.
    """
    whole = [part for number, shard in enumerate(shards) for part in _whole_parts(number, shard)]
    if len(whole) >= lanes:
        return [part for part, _ in whole]
    counts = [count for _, count in whole]
    if None in counts:
        raise RegrowError(
            f"data.lanes is {lanes}, but the corpus has {len(whole)} shards of unknown length; set at most "
            f"data.lanes={len(whole)}"
        )
    total = sum(counts)
    if total < lanes:
        raise RegrowError(f"data.lanes is {lanes}, but the corpus has {total} documents; set at most {total}")
    pieces = [max(1, lanes * count // total) for count in counts]
    while sum(pieces) < lanes:
        # The part whose pieces are longest is cut once more.
        longest = max(range(len(whole)), key=lambda i: (counts[i] / pieces[i], -i))
        pieces[longest] += 1
    return [
        Part(part.shard, part.first + count * i // cut, part.first + count * (i + 1) // cut, part.group)
        for (part, count), cut in zip(whole, pieces, strict=True)
        for i in range(cut)
    ]


def _whole_parts(number: int, shard: Shard) -> list[tuple[Part, int | None]]:
    """The parts of a shard that is not cut, and how many documents each has."""
    if shard.groups is None:
        return [(Part(number, 0, None), shard.documents)]
    edges = enumerate(pairwise(accumulate(shard.groups, initial=0)))
    return [(Part(number, first, stop, group), stop - first) for group, (first, stop) in edges if stop > first]


@dataclass(frozen=True)
class Dealt:
    """One source, dealt to the lanes: ``parts[l::lanes]`` are lane l's; ``names`` stand for the source in every
    hash."""

    shards: list[Shard]
    parts: list[Part]
    names: tuple[int, ...]

    @property
    def of_examples(self) -> bool:
        """Whether the source is instruction data."""
        return isinstance(self.shards[0].text_key, Form)


def deal(shards: Sequence[Shard], lanes: int, seed: int) -> list[Dealt]:
    """The corpus by source, each source's parts shuffled by the seed.

    Raises RegrowError where a source has no shard, or is too small for ``lanes``.
    """
    sources = 1 + max((shard.source for shard in shards), default=0)
    dealt = []
    for number in range(sources):
        held = [shard for shard in shards if shard.source == number]
        if not held:
            raise RegrowError(f"data source {number} has not one shard in the manifest; redo stage data")
        # A corpus of one source is dealt as if there were no such thing as sources.
        names = (number,) if sources > 1 else ()
        parts = split_into_parts(held, lanes)
        dealt.append(Dealt(held, shuffle(parts, seed, "parts", *names), names))
    return dealt


def shuffle(parts: Sequence[Part], seed: int, *names: object) -> list[Part]:
    """The parts in an order that (seed, names) alone decide."""
    return sorted(parts, key=lambda part: draw(seed, *names, part.shard, part.first))


def draw(seed: int, *names: object) -> bytes:
    """32 random bytes that depend on nothing but the arguments."""
    return hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
