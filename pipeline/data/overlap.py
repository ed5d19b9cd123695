"""Overlap: no document that is kept for evaluation may also be trained on.

Documents are the same when their texts are, by a 128-bit hash. Every local training shard is read once for it. What
is still on the hub or behind a URL cannot be looked into before it is fetched, nor can token ids: the caller is told
how many shards those are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.data.documents import read_documents
from pipeline.data.shards import Shard
from pipeline.run import RegrowError

#: So many of the documents that stand on both sides are named.
NAMED = 3


def hash_text(text: str) -> bytes:
    """128 bits of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def held_out_hashes(held_out: Sequence[Shard]) -> dict[bytes, str]:
    """Hash -> "shard, document number" of every document of the local held-out shards."""
    return {
        hash_text(text): f"{shard.name}, document {index}"
        for shard in filter(can_look_into, held_out)
        for index, text in _documents(shard)
    }


def can_look_into(shard: Shard) -> bool:
    """Whether a shard's texts can be read here and now."""
    return shard.kind == "local" and shard.format != "tokenised"


def refuse_overlap(
    corpus: Sequence[Shard], held_out: Sequence[Shard], progress: Callable[[str], None] = lambda line: None
) -> int:
    """RegrowError when a held-out document stands in the corpus; returns how many shards could not be looked into."""
    kept = held_out_hashes(held_out)
    seen = [shard for shard in corpus if can_look_into(shard)] if kept else []
    twins = []
    for number, shard in enumerate(seen, start=1):
        progress(f"shard {number} of {len(seen)}: looking for held-out documents in {shard.name}")
        for index, text in _documents(shard):
            twin = kept.get(hash_text(text))
            if twin is not None:
                twins.append(f"{shard.name}, document {index} (held out as {twin})")
    if twins:
        listed = "; ".join(twins[:NAMED]) + ("; ..." if len(twins) > NAMED else "")
        raise RegrowError(
            f"{len(twins)} documents of the corpus are held out too, so that perplexities would be of known text: "
            f"{listed}. Take them out of data.held_out or out of data.sources"
        )
    return sum(not can_look_into(shard) for shard in (*corpus, *held_out))


def _documents(shard: Shard) -> Iterator[tuple[int, str]]:
    path = Path(shard.place) / shard.path
    return read_documents(path, shard.format, shard.text_key, shard.exclude_domains)
