"""Parts: the pieces of a corpus that are dealt to the lanes once, for the life of a run.

A part is a file, a row group of a parquet file or, in a corpus with fewer of these than lanes, a range of documents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pipeline.data.instructions import Form
from pipeline.data.shards import Shard
from pipeline.errors import RegrowError

#: Lanes that serve 20 numbers of processes up to 1,536; where a corpus allows no more, fewer are taken.
LANES = 1536


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
    whole = _all_parts(shards)
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


def most_lanes(shards: Sequence[Shard]) -> int:
    """The most lanes that one source's shards can be dealt to: as many as they have parts, or documents where those of
    all are counted."""
    counts = [count for _, count in _all_parts(shards)]
    return max(len(counts), 0 if None in counts else sum(counts))


def choose_lanes(shards: Sequence[Shard], processes: int) -> int:
    """Lanes for a corpus where nobody states them: ``LANES``, or fewer where a source is too small for so many.

    Raises RegrowError where a source has not enough for ``processes``.
    """
    most, number = min((most_lanes(held), number) for number, held in enumerate(_by_source(shards)))
    lanes = fitting_lanes(most, processes)
    if lanes is None:
        raise RegrowError(
            f"data.lanes auto: data source {number} allows at most {most} lanes, and {processes} processes need one "
            "each; train on fewer, or split its shards"
        )
    return lanes


def fitting_lanes(most: int, processes: int) -> int | None:
    """At most ``most`` lanes that divide by ``processes``; None where there are none.

    Of the divisors of ``LANES`` (times what ``processes`` have beyond it) that one which most numbers of processes
    divide, and of these the largest.
    """
    beyond = processes // math.gcd(processes, LANES)
    able = [lanes for lanes in (beyond * each for each in _divisors(LANES)) if lanes % processes == 0]
    fitting = [lanes for lanes in able if lanes <= min(most, max(LANES, processes))]
    return max(fitting, key=lambda lanes: (len(_divisors(lanes)), lanes), default=None)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _all_parts(shards: Sequence[Shard]) -> list[tuple[Part, int | None]]:
    """The parts of one source's shards, none of them cut, and how many documents each has."""
    return [part for number, shard in enumerate(shards) for part in _whole_parts(number, shard)]


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
    sources = _by_source(shards)
    dealt = []
    for number, held in enumerate(sources):
        # A corpus of one source is dealt as if there were no such thing as sources.
        names = (number,) if len(sources) > 1 else ()
        parts = split_into_parts(held, lanes)
        dealt.append(Dealt(held, shuffle(parts, seed, "parts", *names), names))
    return dealt


def _by_source(shards: Sequence[Shard]) -> list[list[Shard]]:
    """The shards of each source. RegrowError where one has none."""
    sources = 1 + max((shard.source for shard in shards), default=0)
    held = [[shard for shard in shards if shard.source == number] for number in range(sources)]
    if [] in held:
        raise RegrowError(f"data source {held.index([])} has not one shard in the manifest; redo stage data")
    return held


def shuffle(parts: Sequence[Part], seed: int, *names: object) -> list[Part]:
    """The parts in an order that (seed, names) alone decide."""
    return sorted(parts, key=lambda part: draw(seed, *names, part.shard, part.first))


def draw(seed: int, *names: object) -> bytes:
    """32 random bytes that depend on nothing but the arguments."""
    return hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
