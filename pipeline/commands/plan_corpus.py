"""A look at the corpus for a plan: the first shard of every source that is here, and what the tokenizer makes of it.

Nothing is fetched. A shard is read to its end where it has at most ``READ`` characters of text; the corpus is then
estimated by the bytes of its files. Stage data counts, once the run begins.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.checks import kind_of, local_shards
from pipeline.config import Config
from pipeline.config.source import Source
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_records
from pipeline.data.formats.parquet import row_groups
from pipeline.data.formats.tokenised import about_tokenised
from pipeline.data.sources import TextSource
from pipeline.data.texts import why_no_text
from pipeline.data.tokens import Encoder
from pipeline.inputs import text_source

#: Characters of a shard that are read, in seconds (SlimPajama's have 45 million), and those that are tokenized.
READ, SAMPLE = 100_000_000, 200_000
#: Characters of the first document that are shown.
SHOWN = 200


@dataclass
class _Counts:
    """What the records of a shard were, and the texts of a sample; ``size`` is in bytes of UTF-8 of texts that are
    kept."""

    documents: int = 0
    excluded: int = 0
    size: int = 0
    without_text: Counter[str] = field(default_factory=Counter)
    sample: list[str] = field(default_factory=list)
    ended: bool = True


def look_at_corpus(config: Config, encoder: Encoder | None) -> list[dict[str, Any]]:
    """What was seen of each source that is here, JSON-ready; without ``encoder`` nothing of tokens.

    ``path``, ``shards`` and the ``shard`` that was looked at; its ``documents``, as far as they were read, all of them
    if ``whole``; the shares of these that are ``excluded`` by their domain, and ``without_text``, by kind;
    ``tokens_a_document`` and ``bytes_a_token`` of a sample of ``sampled`` documents; ``corpus_tokens`` and the
    ``epochs`` that the budget makes of them, estimates; and the ``example``, how the first document begins. What is not
    known is None. Raises DamagedShard as the run would.
    """
    looks = [_look(config, number, source, encoder) for number, source in enumerate(config.data.sources)]
    return [look for look in looks if look is not None]


def corpus_tokens(looks: list[dict[str, Any]], config: Config) -> int | None:
    """The tokens of the whole corpus, estimated; None where a source is not here, or its tokens are not known."""
    known = [look["corpus_tokens"] for look in looks]
    return None if None in known or len(known) < len(config.data.sources) else sum(known)


def _look(config: Config, number: int, source: Source, encoder: Encoder | None) -> dict[str, Any] | None:
    asked = text_source(config, f"data.sources.{number}")
    here = local_shards(asked) or {}
    files = {path: size for path in here if (size := path.stat().st_size)}
    for path in files:
        kind = kind_of(asked, path, here[path])
        try:
            seen = _tokenised(path) if kind == "tokenised" else _text(asked, path, kind, encoder)
        except DamagedShard:
            if asked.on_damage == "raise":
                raise
            continue
        if seen is None:
            continue
        tokens, share = seen.pop("tokens"), seen.pop("share")
        scale = sum(files.values()) / files[path] / share if share else None
        whole = None if scale is None or tokens is None else round(tokens * scale)
        documents = None if scale is None else seen["documents"] * scale
        return {
            "path": source.path,
            "shards": len(files),
            "shard": path.name,
            **seen,
            "corpus_tokens": whole,
            "epochs": _epochs(config, source, whole, documents),
        }
    return None


def _epochs(config: Config, source: Source, tokens: int | None, documents: float | None) -> float | None:
    """How often the budget reads a source through: instruction data have a row for each record."""
    budget = config.steps * config.tokens_per_step * source.weight / sum(one.weight for one in config.data.sources)
    if source.format == "instruction":
        return budget / config.data.row_length / documents if documents else None
    return budget / tokens if tokens else None


def _tokenised(path: Path) -> dict[str, Any]:
    about = about_tokenised(path)
    return {
        "documents": about["documents"],
        "whole": True,
        "excluded": 0.0,
        "without_text": {},
        "sampled": about["documents"],
        "tokens_a_document": about["tokens"] / max(about["documents"], 1),
        "bytes_a_token": None,
        "example": None,
        "tokens": about["tokens"],
        "share": 1.0,
    }


def _text(source: TextSource, path: Path, kind: str, encoder: Encoder | None) -> dict[str, Any] | None:
    if kind == "parquet" and not sum(row_groups(path)):
        return None
    counts = _count(source, path, kind)
    ids = [len(one) for one in encoder.batch(counts.sample)] if encoder is not None else []
    read = sum(len(text.encode()) for text in counts.sample)
    known = bool(sum(ids))
    return {
        "documents": counts.documents,
        "whole": counts.ended,
        "excluded": counts.excluded / max(counts.documents, 1),
        "without_text": {what: count / counts.documents for what, count in sorted(counts.without_text.items())},
        "sampled": len(counts.sample),
        "tokens_a_document": sum(ids) / len(ids) if known else None,
        "bytes_a_token": read / sum(ids) if known else None,
        "example": counts.sample[0][:SHOWN] if counts.sample else None,
        "tokens": counts.size * sum(ids) / read if known else None,
        "share": 1.0 if counts.ended else _share(path, kind, counts.documents),
    }


def _count(source: TextSource, path: Path, kind: str) -> _Counts:
    """The records from the first on, until enough text was read."""
    counts, characters, sampled = _Counts(), 0, 0
    for _, text, domain in read_records(path, kind, source.text_key):
        counts.documents += 1
        what = why_no_text(text)
        if what is not None:
            counts.without_text[what] += 1
            continue
        characters += len(text)
        if domain in source.exclude_domains:
            counts.excluded += 1
        else:
            counts.size += len(text.encode())
            if sampled < SAMPLE:
                counts.sample.append(text)
                sampled += len(text)
        if characters >= READ:
            counts.ended = False
            break
    return counts


def _share(path: Path, kind: str, documents: int) -> float | None:
    """Which part of a file its first ``documents`` are; None where only decoding all of it would tell."""
    if kind == "parquet":
        return documents / sum(row_groups(path))
    if path.name.endswith(".jsonl"):
        with path.open("rb") as file:
            return sum(map(len, islice(file, documents))) / path.stat().st_size
    return None
