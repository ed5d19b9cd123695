"""Texts: where a record keeps its text, and what stands there when it keeps none.

A record without text is no damage: its file is what was written. It keeps its number, so that the numbers of the
documents behind it hold, and is counted by what stands in the text's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.data.instructions import Form
from pipeline.errors import RegrowError

#: What JSON has beside strings, as people call it.
KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
NO_SUCH_KEY = "no such key"
#: What JSON can hold as ``"\\ud83d"``: a string that has no UTF-8, on which tokenizers fail.
HALF_A_PAIR = "half of a surrogate pair"
#: Kinds of a text that is there and says nothing.
BLANK = ("empty", "white space alone")
#: So many keys of a record are named.
NAMED = 8


@dataclass(frozen=True)
class NoText:
    """Stands for the text of a record that has no Unicode string under the text key: what it has there, and the
    record's keys, those of objects behind a dot."""

    kind: str
    keys: tuple[str, ...] = ()


def text_of(record: Mapping[str, Any], text_key: str | Form) -> str | NoText:
    """The string of a decoded record under ``text_key``, which leads into objects by dots unless a key has that very
    name; by a form the exchange of its instruction and response."""
    if isinstance(text_key, Form):
        return _exchange_of(record, text_key)
    text = record.get(text_key)
    if text is None and text_key not in record:
        text = _behind_dots(record, text_key)
    if isinstance(text, str) and is_unicode(text):
        return text
    kind = HALF_A_PAIR if isinstance(text, str) else NO_SUCH_KEY if text is _MISSING else KINDS[type(text)]
    return NoText(kind, tuple(_keys(record))[:NAMED])


def _exchange_of(record: Mapping[str, Any], form: Form) -> str | NoText:
    """Blank inputs, and those that are null or not there, are none."""
    parts = [text_of(record, key) for key in form.keys]
    given = parts[2] if form.input is not None else ""
    if isinstance(given, NoText) and given.kind in (NO_SUCH_KEY, KINDS[type(None)]):
        given = ""
    for part in (*parts[:2], given):
        if isinstance(part, NoText):
            return part
    blank = next((why for part in parts[:2] if (why := why_no_text(part)) is not None), None)
    return NoText(blank) if blank else form.exchange(parts[0], "" if given.isspace() else given, parts[1])


def named_key(text_key: str | Form) -> str:
    """The key of a text, for messages; of a form those that a record must have."""
    return repr(text_key) if isinstance(text_key, str) else " or ".join(map(repr, text_key.keys[:2]))


def key_of(text_key: str | Form) -> str:
    """Where a source's config says which keys its records have, for messages."""
    return "text_key" if isinstance(text_key, str) else "the keys of instruction"


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: JSON may hold half of a surrogate pair, which cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


_MISSING = object()


def _behind_dots(record: Mapping[str, Any], key: str) -> Any:
    first, _, rest = key.partition(".")
    inner = record.get(first)
    if not rest or not isinstance(inner, dict):
        return _MISSING
    return inner[rest] if rest in inner else _behind_dots(inner, rest)


def _keys(record: Mapping[str, Any]) -> Iterator[str]:
    """What a text key could name: the record's keys, and those of objects in it behind the object's own."""
    for key, value in record.items():
        yield from [f"{key}.{inner}" for inner in value] if isinstance(value, dict) and value else [key]


def why_no_text(text: str | NoText) -> str | None:
    """What stands in the text's place where a record has no text; None where it has one."""
    if isinstance(text, NoText):
        return text.kind
    if not text:
        return BLANK[0]
    return BLANK[1] if text.isspace() else None


def counted(kinds: Mapping[str, int]) -> str:
    """For messages: "3 records without text (null 2, empty 1)"."""
    count = sum(kinds.values())
    listed = ", ".join(f"{kind} {number:,}" for kind, number in kinds.items())
    return f"{count:,} record{'s' * (count != 1)} without text ({listed})"


def refuse_no_text(shard: str, first: int, what: str) -> RegrowError:
    """The error for a record without text where ``data.on_no_text`` is ``raise``; ``first`` is its number."""
    return RegrowError(
        f"shard {shard}: {what}, at record {first}; mend it, or leave such records out with data.on_no_text: skip"
    )
