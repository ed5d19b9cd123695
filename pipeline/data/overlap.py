"""Overlap: no document that is kept for evaluation may also be trained on.

Documents are the same when their texts are, by a 128-bit hash. Every local training shard is read once for it; a
shard that is still on the hub or behind a URL cannot be looked into before it is fetched, and the caller is told how
many those are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.data.documents import read_documents
from pipeline.data.shards import Shard, fetch
from pipeline.run import RegrowError

#: So many of the documents that stand on both sides are named.
NAMED = 3


def hash_text(text: str) -> bytes:
    """128 bits of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def held_out_hashes(held_out: Sequence[Shard], cache: Path) -> dict[bytes, str]:
    """Hash -> "shard, document number" of every held-out document."""
    return {
        hash_text(text): f"{shard.name}, document {index}"
        for shard in held_out
        for index, text in read_documents(fetch(shard, cache), shard.format, shard.text_key, shard.exclude_domains)
    }


def refuse_overlap(
    corpus: Sequence[Shard],
    held_out: Sequence[Shard],
    cache: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> int:
    """RegrowError when a held-out document stands in the corpus; returns how many shards could not be looked into.

    Shards of token ids are among those: their texts are gone.
    """
    kept = held_out_hashes(held_out, cache)
    seen, unseen = [s for s in corpus if s.kind == "local" and s.format != "tokenised"], 0
    unseen = len(corpus) - len(seen)
    twins = []
    for number, shard in enumerate(seen, start=1):
        progress(f"shard {number} of {len(seen)}: looking for held-out documents in {shard.name}")
        path = Path(shard.place) / shard.path
        for index, text in read_documents(path, shard.format, shard.text_key, shard.exclude_domains):
            twin = kept.get(hash_text(text))
            if twin is not None:
                twins.append(f"{shard.name}, document {index} (held out as {twin})")
    if twins:
        listed = "; ".join(twins[:NAMED]) + ("; ..." if len(twins) > NAMED else "")
        raise RegrowError(
            f"{len(twins)} documents of the corpus are held out too, so that perplexities would be of known text: "
            f"{listed}. Take them out of data.held_out or out of data.sources"
        )
    return unseen
