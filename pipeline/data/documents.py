"""Documents: reading the texts of one shard, in file order, and refusing a damaged shard by name.

What a shard looks like inside is the business of its format's own file; here the format is chosen, excluded domains
are left out, and a shard is counted while every document in it is decoded and checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.archive import read_archive
from pipeline.data.columns import read_columns, row_groups
from pipeline.data.damage import DamagedShard
from pipeline.data.jsonl import read_jsonl
from pipeline.data.tokenised import check_tokenised
from pipeline.run import RegrowError

ENDINGS = {".jsonl": "jsonl", ".jsonl.zst": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet", ".tar": "tar",
           ".tar.gz": "tar"}  # fmt: skip
READERS = {"jsonl": read_jsonl, "tar": read_archive, "parquet": read_columns}

__all__ = ["Census", "DamagedShard", "check_documents", "format_of", "read_documents"]


@dataclass(frozen=True)
class Census:
    """What a whole shard holds, excluded domains included.

    ``characters`` and ``bytes_of_text`` (UTF-8) are 0 for a tokenised shard, ``tokens`` is None for any other.
    ``domains`` counts the documents that have one, ``characters_of`` their characters; ``groups`` are the rows of each
    row group of a parquet file.
    """

    documents: int
    characters: int = 0
    bytes_of_text: int = 0
    domains: dict[str, int] = field(default_factory=dict)
    groups: tuple[int, ...] | None = None
    tokens: int | None = None
    characters_of: dict[str, int] = field(default_factory=dict)

    def characters_without(self, domains: Collection[str]) -> int:
        """Characters of the documents that are in none of ``domains``."""
        return self.characters - sum(self.characters_of.get(domain, 0) for domain in domains)


def format_of(name: str) -> str | None:
    """Format by a file's ending, or None when it is not a shard."""
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)


def read_documents(
    path: Path, format: str, text_key: str = "text", exclude_domains: Sequence[str] = (), first: int = 0
) -> Iterator[tuple[int, str]]:
    """(index in the shard, text) of every document from ``first`` on whose domain is not excluded.

    The index counts all documents, excluded ones too, so that it names the same document under every filter. The
    domain is ``meta.redpajama_set_name``, SlimPajama's field; documents without one are kept. What is not read (the
    documents before ``first``, those behind the last that is asked for) is not checked: see ``check_documents``.
    Raises DamagedShard naming the shard and the document on anything that cannot be read.
    """
    if format not in READERS:
        raise RegrowError(f"shard {path}: format {format} holds no text; only {', '.join(READERS)} do")
    for index, text, domain in READERS[format](path, text_key, first):
        if domain not in exclude_domains:
            yield index, text


def check_documents(
    path: Path, format: str, text_key: str, watch: Callable[[int, str, str | None], None] | None = None
) -> Census:
    """Decode and check the whole shard, and count what is in it; ``watch`` is called with the index, the text and the
    domain of every document of text. Raises DamagedShard."""
    if format == "tokenised":
        about = check_tokenised(path)
        return Census(about["documents"], tokens=about["tokens"])
    documents = characters = size = 0
    domains: Counter[str] = Counter()
    characters_of: Counter[str] = Counter()
    for index, text, domain in READERS[format](path, text_key, 0):
        if watch is not None:
            watch(index, text, domain)
        documents += 1
        characters += len(text)
        size += len(text) if text.isascii() else len(text.encode())
        if domain is not None:
            domains[domain] += 1
            characters_of[domain] += len(text)
    groups = row_groups(path) if format == "parquet" else None
    return Census(documents, characters, size, dict(sorted(domains.items())), groups,
                  characters_of=dict(sorted(characters_of.items())))  # fmt: skip
