"""Documents: reading the texts of one shard, in file order, and refusing a damaged shard by name.

What a shard looks like inside is the business of its format's own file; here the format is chosen, excluded domains
and records without text are left out, and a shard is counted while every record in it is decoded and checked.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.damage import BadRecord
from pipeline.data.formats.jsonl import count_records, read_jsonl
from pipeline.data.formats.parquet import read_parquet, row_groups
from pipeline.data.formats.tar import count_samples, read_tar
from pipeline.data.formats.tokenised import check_tokenised
from pipeline.data.instructions import Form
from pipeline.data.sources import ENDINGS, TextSource, beside
from pipeline.data.texts import NoText, counted, is_unicode, key_of, named_key, refuse_no_text, why_no_text
from pipeline.errors import RegrowError

READERS = {"jsonl": read_jsonl, "tar": read_tar, "parquet": read_parquet}
#: Of the formats in which one record can be bad by itself.
COUNTERS = {"jsonl": count_records, "tar": count_samples}


@dataclass(frozen=True)
class Census:
    """What a whole shard holds, excluded domains included.

    ``documents`` counts records, those without text too; ``without_text`` counts these by what stands in the text's
    place, and ``first_without_text`` is the first one's number. The rest is of records with text: ``characters`` are 0
    for a tokenised shard, ``tokens`` is None for any other. ``domains`` counts the documents that have one,
    ``characters_of`` their characters; ``groups`` are the rows of each row group of a parquet file.
    """

    documents: int
    characters: int = 0
    domains: dict[str, int] = field(default_factory=dict)
    groups: tuple[int, ...] | None = None
    tokens: int | None = None
    characters_of: dict[str, int] = field(default_factory=dict)
    without_text: dict[str, int] = field(default_factory=dict)
    first_without_text: int | None = None

    @classmethod
    def from_json(cls, counts: Mapping[str, Any]) -> Census:
        """The census whose fields ``counts`` holds; an earlier release counted more, which is let go."""
        return cls(**{name: count for name, count in counts.items() if name in cls.__dataclass_fields__})

    def characters_without(self, domains: Collection[str]) -> int:
        """Characters of the documents that are in none of ``domains``."""
        return self.characters - sum(self.characters_of.get(domain, 0) for domain in domains)


def add_up(parts: Sequence[Census]) -> Census:
    """What several shards hold together; row groups and the first record without text are those of one shard alone."""
    sums = {name: Counter() for name in ("domains", "characters_of", "without_text")}
    for part in parts:
        for name, count in sums.items():
            count.update(getattr(part, name))
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Census(
        sum(part.documents for part in parts),
        sum(part.characters for part in parts),
        tokens=sum(tokens) if tokens else None,
        **{name: dict(sorted(count.items())) for name, count in sums.items()},
    )


def format_of(name: str) -> str | None:
    """Format by a file's ending, or None when it is not a shard."""
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)


def format_for(source: TextSource, name: str) -> str | None:
    """Format of a source's file: the one that the source is said to have, or by the ending; None: not a shard, as what
    macOS puts beside a file (._NAME) is none, nor a tar of instruction data. RegrowError on a shard whose name is not
    UTF-8."""
    if beside(name):
        return None
    kind = format_of(name) if source.format == "auto" else source.format
    if kind == "tar" and isinstance(source.text_key, Form):
        return None
    if kind is not None and not is_unicode(name):
        raise RegrowError(f"{source.name}: the name of a file in it is not UTF-8 ({os.fsencode(name)!r}); rename it")
    return kind


def read_records(
    path: Path, format: str, text_key: str | Form = "text", first: int = 0
) -> Iterator[tuple[int, str | NoText, str | None]]:
    """(index in the shard, text, domain) of every record from ``first`` on.

    Raises DamagedShard naming the shard and the record on anything that cannot be read, and RegrowError where not one
    record of a whole shard has a string under ``text_key``, which is then the wrong key.
    """
    if format not in READERS:
        raise RegrowError(f"shard {path}: format {format} holds no text; only {', '.join(READERS)} do")
    # What is before the first may have texts; of a column the type tells.
    found = first > 0 or format == "parquet"
    kinds: Counter[str] = Counter()
    keys: tuple[str, ...] = ()
    for index, text, domain in READERS[format](path, text_key, first):
        yield index, text, domain
        if not found and isinstance(text, NoText):
            kinds[text.kind] += 1
            keys = keys or text.keys
        else:
            found = True
    if kinds and not found:
        raise RegrowError(
            f"shard {path}: no string under the key {named_key(text_key)} in the whole file: {counted(kinds)}; set "
            f"{key_of(text_key)} of its source to one of the keys that are there ({', '.join(keys) or 'none'}), or "
            "leave the file out"
        )


def read_documents(
    path: Path,
    format: str,
    text_key: str | Form = "text",
    exclude_domains: Sequence[str] = (),
    first: int = 0,
    on_no_text: str = "skip",
) -> Iterator[tuple[int, str]]:
    """(index in the shard, text) of every document from ``first`` on whose domain is not excluded.

    The index counts all records, those that are left out too, so that it names the same document under every filter.
    The domain is ``meta.redpajama_set_name``, SlimPajama's field; documents without one are kept. Records without a
    string are left out; a text of white space alone is given, and encodes to nothing. on_no_text: ``raise`` refuses
    both with RegrowError. What is not read (the documents before ``first``, those behind the last that is asked for)
    is not checked: see ``check_documents``. Raises what ``read_records`` raises.
    """
    for index, text, domain in read_records(path, format, text_key, first):
        if on_no_text == "raise" and (kind := why_no_text(text)) is not None:
            raise refuse_no_text(str(path), index, f"a record without text ({kind})")
        if isinstance(text, str) and domain not in exclude_domains:
            yield index, text


def check_documents(
    path: Path, format: str, text_key: str | Form, watch: Callable[[int, str, str | None], None] | None = None
) -> Census:
    """Decode and check the whole shard, and count what is in it; ``watch`` is called with the index, the text and the
    domain of every document with text.

    Raises what ``read_records`` raises; where one record is bad, the message counts those that go with it.
    """
    try:
        return _census(path, format, text_key, watch)
    except BadRecord as error:
        raise BadRecord(f"{error}; until then none of its documents ({COUNTERS[format](path):,}) is read") from None


def _census(
    path: Path, format: str, text_key: str | Form, watch: Callable[[int, str, str | None], None] | None
) -> Census:
    if format == "tokenised":
        about = check_tokenised(path)
        return Census(about["documents"], tokens=about["tokens"])
    documents = characters = 0
    domains: Counter[str] = Counter()
    characters_of: Counter[str] = Counter()
    without_text: Counter[str] = Counter()
    first_without_text = None
    for index, text, domain in read_records(path, format, text_key):
        documents += 1
        kind = why_no_text(text)
        if kind is not None:
            without_text[kind] += 1
            first_without_text = index if first_without_text is None else first_without_text
            continue
        if watch is not None:
            watch(index, text, domain)
        characters += len(text)
        if domain is not None:
            domains[domain] += 1
            characters_of[domain] += len(text)
    groups = row_groups(path) if format == "parquet" else None
    return Census(
        documents,
        characters,
        dict(sorted(domains.items())),
        groups,
        characters_of=dict(sorted(characters_of.items())),
        without_text=dict(sorted(without_text.items())),
        first_without_text=first_without_text,
    )
