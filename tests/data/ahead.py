"""Tokenising ahead, asked for as the tests do, and what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.corpus.crew import Crew
from pipeline.data.corpus.tokenising import tokenise_corpus
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.tokens import Encoding
from pipeline.launch import die_with_parent


def tokenise_into(
    folder: Path, shards: Sequence[Shard], tokenizer: Path, **changes: Any
) -> tuple[list[Shard], list[dict[str, Any]], list[str]]:
    """Tokenise with one process; the shards, the skipped ones and the lines that were said."""
    said = []
    asked = {
        name: changes.pop(name) for name in ("separator", "special_tokens", "trust_remote_code") if name in changes
    }
    made = tokenise_corpus(
        shards,
        Encoding(tokenizer, **asked),
        folder,
        crew=Crew(changes.pop("processes", 1), die_with_parent, said.append),
        **{"cache": ShardCache(folder.with_name("cache")), **changes},
    )
    return *made, said


def times(folder: Path) -> dict[str, int]:
    """When each tokenised shard was written last, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
