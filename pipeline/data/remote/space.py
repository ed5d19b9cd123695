"""Room: how many bytes the copies of remote shards take in a cache folder, and how many a run will need."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.shards import Shard
from pipeline.errors import RegrowError
from pipeline.files import require_space

#: The names that a cache gives: a digest, the row group, the shard's own name; and, of a temporary file, the bytes that
#: it will have. Whatever else lies in the folder is somebody else's: it is neither counted nor deleted.
OWN = re.compile(r"[0-9a-f]{20}(-[0-9]+)?-.+", re.DOTALL)
TEMPORARY = re.compile(OWN.pattern + r"\.(?P<bytes>[0-9]+)\.part", re.DOTALL)


def copy_size(shard: Shard, group: int | None) -> int:
    """Bytes of a copy; of a row group's about its share of the file."""
    return shard.bytes if group is None else shard.bytes * shard.groups[group] // sum(shard.groups)


def taken_room(folder: Path) -> dict[Path, tuple[float, int]]:
    """(time of change, bytes) of every copy in a cache folder, and of those that are on their way as if they were
    there; not of what no cache has named."""
    while True:
        # One that got its name or went meanwhile: look again, lest it be counted under neither name.
        with contextlib.suppress(FileNotFoundError):
            return {
                path: (path.stat().st_mtime, max(path.stat().st_size, _coming(path)))
                for path in folder.glob("*")
                if OWN.fullmatch(path.name) and path.suffix != ".sha256"
            }


def _coming(path: Path) -> int:
    """Bytes that a temporary file will have; 0 for a copy."""
    temporary = TEMPORARY.fullmatch(path.name)
    return int(temporary["bytes"]) if temporary else 0


def needed_space(shards: Sequence[Shard], lanes: int) -> int:
    """Bytes that the copies of ``lanes`` lanes take: of each source, each reads one part and has the next one ahead."""
    largest: dict[int, float] = {}
    for shard in shards:
        if shard.kind != "local":
            share = max(shard.groups) / sum(shard.groups) if shard.groups else 1
            largest[shard.source] = max(largest.get(shard.source, 0), shard.bytes * share)
    return 2 * lanes * int(sum(largest.values()))


def require_cache_space(folder: Path, shards: Sequence[Shard], lanes: int, limit: int | None = None) -> int:
    """``needed_space``, after a check: RegrowError where the disk of ``folder``, or ``limit`` bytes, is smaller."""
    needed = needed_space(shards, lanes)
    what = f"the copies of remote shards: {lanes} lanes, each source's largest part twice in each"
    if limit is not None and needed > limit:
        raise RegrowError(
            f"no space for {what}: {needed:,} bytes, and data.cache_size is {limit:,}; "
            "raise it, or use fewer data.lanes"
        )
    if needed:
        present = sum(size for _, size in taken_room(folder).values())
        require_space(folder, max(0, needed - present), what)
    return needed
