"""Overlap: no document that is kept for evaluation may also be trained on.

Documents are the same when their texts are, by a 128-bit hash. The held-out ones are hashed first and kept in memory;
the corpus is searched for them while it is decoded anyway: local text by the listing, and text that is still on the
hub or behind a URL when it has been fetched, before its first document is served or tokenised. Token ids cannot be
looked into: the caller is told how many shards those are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.data.remote.cache import ShardCache
from pipeline.data.remote.contents import read_contents
from pipeline.data.shards import Shard
from pipeline.errors import RegrowError
from pipeline.files import hash_json, replacing

#: Bytes of a text's hash.
HASH = 16
#: So many of the documents that stand on both sides are named.
NAMED = 3


def hash_text(text: str) -> bytes:
    """128 bits of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH).digest()


def held_out_hashes(held_out: Sequence[Shard], cache: ShardCache) -> dict[bytes, str]:
    """Hash -> "shard, document number" of every document of the held-out shards of text; remote ones are fetched."""
    return {
        hash_text(text): f"{shard.name}, document {index}"
        for shard in held_out
        if shard.format != "tokenised"
        for index, text in read_contents(shard, cache)
    }


def write_hashes(path: Path, hashes: Iterable[bytes]) -> None:
    """The hashes alone, one after the other, for those who read the corpus later; whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(sorted(hashes)))


def read_hashes(path: Path) -> dict[bytes, str]:
    """What ``write_hashes`` wrote, as ``Search`` takes it; empty where there is no such file."""
    data = path.read_bytes() if path.exists() else b""
    return {data[place : place + HASH]: "one of data.held_out" for place in range(0, len(data), HASH)}


def can_look_into(shard: Shard) -> bool:
    """Whether a shard's texts can be read here and now."""
    return shard.kind == "local" and shard.format != "tokenised"


@dataclass
class Twins:
    """Documents of one shard that are held out too: how many, and the first of them in words."""

    count: int = 0
    first: list[str] = field(default_factory=list)


class Search:
    """The held-out documents that a source is searched for, without its excluded domains."""

    def __init__(self, hashes: Mapping[bytes, str], exclude_domains: Collection[str]):
        self._hashes = hashes
        self._excluded = frozenset(exclude_domains)

    @cached_property
    def mark(self) -> str | None:
        """What a shard was searched for: what was found for another mark says nothing. None: nothing to search for."""
        kept = hashlib.sha256(b"".join(sorted(self._hashes))).hexdigest()
        return hash_json([kept, sorted(self._excluded)]) if self._hashes else None

    def watch(self, twins: Twins, before: int = 0) -> Callable[[int, str, str | None], None] | None:
        """For ``check_documents``: notes in ``twins`` every document that is held out; None: nothing to search for.
        ``before``: documents of the shard before those that are read."""
        if not self._hashes:
            return None

        def seen(index: int, text: str, domain: str | None) -> None:
            twin = self._hashes.get(hash_text(text)) if domain not in self._excluded else None
            if twin is not None:
                twins.count += 1
                if len(twins.first) < NAMED:
                    twins.first.append(f"document {before + index} (held out as {twin})")

        return seen


def refuse_overlap(found: Iterable[tuple[Shard, Twins]]) -> None:
    """RegrowError when a held-out document stands in the corpus; ``found`` are the corpus's searched shards."""
    twins = [(shard, each) for shard, each in found if each.count]
    count = sum(each.count for _, each in twins)
    if count:
        named = [f"{shard.name}, {place}" for shard, each in twins for place in each.first][:NAMED]
        listed = "; ".join(named) + ("; ..." if count > len(named) else "")
        raise RegrowError(
            f"{count} document{'s' * (count > 1)} of the corpus {'are' if count > 1 else 'is'} held out too, so that "
            f"perplexities would be of known text: {listed}. Take them out of data.held_out or out of data.sources"
        )
