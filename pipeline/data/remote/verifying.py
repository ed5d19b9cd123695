"""Verifying: whether bytes are those that the manifest pinned.

Published hashes decide where there are any. Where nobody published one, the server's size and ETag are compared before
a fetch, and the sha256 of the first fetch holds for all later ones; a flip in the first fetch cannot be seen.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from pipeline.data.damage import DamagedShard
from pipeline.data.remote.servers import locate, state_of
from pipeline.data.shards import Shard
from pipeline.errors import RegrowError
from pipeline.files import hash_file, write_atomic

#: For a local file that is another one than stage data saw.
REMEDY = "put back the file that stage data listed, or list the corpus anew in a new run (run.name)"


def checked_local(shard: Shard) -> Path:
    """The path of a local shard. RegrowError when it is missing, DamagedShard when its bytes are not the manifest's."""
    path = Path(shard.place) / shard.path
    try:
        state = path.stat()
    except OSError:
        # No damage, which a run may be told to skip: a disk that is not mounted must not empty a corpus.
        raise RegrowError(
            f"shard {shard.name}: missing, though the manifest lists it; put it, or a link to it, back, "
            "or redo stage data"
        ) from None
    if state.st_size != shard.bytes:
        raise DamagedShard(
            f"shard {shard.name}: {state.st_size} bytes, the manifest says {shard.bytes}; it was cut or replaced: "
            f"{REMEDY}"
        )
    if shard.sha256 is not None and _digest(path, state.st_size, state.st_mtime_ns) != shard.sha256:
        raise DamagedShard(f"shard {shard.name}: its bytes are not those of the manifest (sha256 differs): {REMEDY}")
    return path


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    """sha256 of a file, taken once in a process: many lanes may read parts of one large shard."""
    return hash_file(path)


def require_unchanged(shard: Shard, stalled: float) -> None:
    """RegrowError when the server gives another size or ETag for a url shard than the manifest has."""
    size, etag = state_of(*locate(shard, stalled))
    for name, now, pinned in (("size", size, shard.bytes), ("ETag", etag, shard.etag)):
        if now != pinned:
            raise RegrowError(
                f"shard {shard.name}: the file on the server is not the manifest's ({name} was {pinned}, "
                f"is {now}); put it back, or redo stage data"
            )


def why_wrong(shard: Shard, path: Path, first_hash: Path) -> str | None:
    """What tells that the downloaded file at ``path`` is not the shard of the manifest; None where it is.

    ``first_hash`` is the file that keeps the sha256 of a first fetch, for shards without a published hash.
    """
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{size} bytes, the manifest says {shard.bytes}"
    if shard.sha256 is not None:
        return None if hash_file(path) == shard.sha256 else "its bytes are not those of the manifest (sha256 differs)"
    if shard.kind == "hub" and shard.etag is not None:
        with path.open("rb") as file:
            blob = hashlib.sha1(b"blob %d\0" % size + file.read()).hexdigest()
        return None if blob == shard.etag else "its bytes are not those of the manifest (git blob id differs)"
    return unlike_first(hash_file(path), first_hash)


def unlike_first(digest: str, first_hash: Path) -> str | None:
    """None where ``digest`` is that of the first fetch, or this is the first; else what is wrong."""
    if not first_hash.exists():
        write_atomic(first_hash, f"{digest}\n")
        return None
    return None if first_hash.read_text().strip() == digest else "its bytes are not those of its first fetch"
