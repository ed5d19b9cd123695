"""Position: where a stream of rows stands, written small enough for every checkpoint, and whose stream it is.

A position is one cursor for each lane, moved by the rows that training has consumed. It means something only in the
stream that it was taken from, so a checkpoint carries the stream's identity too, and another identity is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import RegrowError

#: The definition of the order: how parts are dealt, sources drawn and rows packed. Another order is another number.
ORDER = 1

#: How a person knows the fields of an identity.
NAMES = {
    "lanes": "data.lanes",
    "row_length": "data.row_length",
    "seed": "data.seed",
    "weights": "the weights of data.sources",
    "manifest": "the corpus (hash of data/manifest.json)",
    "tokenizer": "the tokenizer (its hash)",
    "bos": "the BOS token",
    "separator": "data.separator (token id)",
    "special_tokens": "data.special_tokens",
    "order": "the order of rows of this release",
}


@dataclass(frozen=True)
class Cursor:
    """The first token of one source that a lane has not handed out: epoch, part (in that epoch's order), document
    (its index in the shard), token."""

    epoch: int = 0
    part: int = 0
    document: int = 0
    token: int = 0


@dataclass(frozen=True)
class LaneCursor:
    """Where a lane stands: a cursor for each source, and the damaged parts that it has left out, each named by its
    source, its shard in that source, and its first document."""

    cursors: tuple[Cursor, ...] = (Cursor(),)
    skipped: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Begin:
    """Where a run's rows begin: the number of its first row, and the cursors of the lanes that were read before it."""

    row: int = 0
    cursors: Mapping[int, LaneCursor] = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """All that fixes the rows of a run. ``manifest`` and ``tokenizer`` are hashes; ``bos`` and ``separator`` are token
    ids; ``special_tokens`` is ``parse`` or ``plain``. A checkpoint keeps it as ``dataclasses.asdict`` gives it."""

    lanes: int
    row_length: int
    seed: int
    weights: tuple[float, ...]
    manifest: str
    tokenizer: str
    bos: int | None
    separator: int
    special_tokens: str
    order: int = ORDER


def check_identity(saved: Mapping[str, Any], now: Identity) -> None:
    """Refuse to go on in another stream: RegrowError names each differing field, its value then and its value now."""
    present = asdict(now)
    differing = [
        f"{NAMES.get(name, name)} was {_shown(saved, name)}, is {_shown(present, name)}"
        for name in dict.fromkeys((*present, *saved))
        if _shown(saved, name) != _shown(present, name)
    ]
    if differing:
        older = [NAMES.get(name, name) for name in present if name not in saved]
        remedy = (
            f"An earlier release wrote this position, which says nothing of {', '.join(older)}: go on with that "
            "release, or start a new run"
            if older
            else "Put them back, or start a new run"
        )
        raise RegrowError(f"this run's rows were read from another stream: {'; '.join(differing)}. {remedy}")


def _shown(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        return "not stated"
    value = fields[name]
    return ", ".join(str(float(item)) for item in value) if isinstance(value, list | tuple) else str(value)


def to_json(cursors: Mapping[int, LaneCursor]) -> dict[str, str]:
    """Cursors by lane as JSON: ``{"7": "0.3.120.55 0.1.9.0 | 1.4.0"}``, that is epoch.part.document.token of every
    source and, behind the bar, source.shard.document of every part that was left out.

    Texts, since the run's JSON files are indented: a number a line would make three times the size of it.
    """
    return {str(lane): _text(cursors[lane]) for lane in sorted(cursors)}


def _text(cursor: LaneCursor) -> str:
    places = " ".join(f"{c.epoch}.{c.part}.{c.document}.{c.token}" for c in cursor.cursors)
    skipped = " ".join(".".join(map(str, part)) for part in cursor.skipped)
    return f"{places} | {skipped}" if skipped else places


def from_json(value: Mapping[str, str]) -> dict[int, LaneCursor]:
    """The cursors that ``to_json`` wrote. Raises RegrowError naming a lane whose entry is not one of its."""
    found = {}
    for lane, text in value.items():
        try:
            places, _, skipped = text.partition("|")
            cursors = tuple(Cursor(*_numbers(place, 4)) for place in places.split())
            found[int(lane)] = LaneCursor(cursors, tuple(_numbers(part, 3) for part in skipped.split()))
        except (ValueError, AttributeError):
            raise RegrowError(
                f"position of the data stream: lane {lane} has {text!r}, which is not a cursor; this checkpoint is "
                "damaged, take an older one"
            ) from None
        if not cursors:
            raise RegrowError(f"position of the data stream: lane {lane} has no cursor; take an older checkpoint")
    return found


def _numbers(text: str, count: int) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split("."))
    if len(numbers) != count or min(numbers) < 0:
        raise ValueError(text)
    return numbers


def skipped_parts(cursors: Mapping[int, LaneCursor], names: Sequence[Sequence[str]]) -> list[str]:
    """One line for each damaged part that was left out; ``names`` are the shards' names, by source."""
    return [
        f"lane {lane}: left out shard {names[source][shard]} from document {first} on, which is damaged"
        for lane in sorted(cursors)
        for source, shard, first in cursors[lane].skipped
    ]
