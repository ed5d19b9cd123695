"""Memory of the host, as far as this process may take it: a container or a job of a cluster has its own limit."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import psutil

#: Where Linux shows control groups (of containers, of jobs of a cluster), and which of them this process is in.
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: Of version 2 and 1: the files of a group's limit and use, and the line of memory.stat with the cached files in its
#: use that give way when memory is needed.
IN_GROUP = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
#: Of glibc's mallopt: the size from which memory is the kernel's own and goes back when it is freed, and how much may
#: stay free at the heap's end.
MMAP_THRESHOLD, TRIM_THRESHOLD, KEPT = -3, -1, 128 * 1024


def available_memory() -> int:
    """Bytes that this process can still take: of the host's memory, and in every control group that it is in."""
    in_groups = (free for folder in _own_groups() if (free := _free_in(folder)) is not None)
    return min([psutil.virtual_memory().available, *in_groups])


def total_memory() -> int:
    """Bytes that this process could take at most, whatever others take now: the host's memory, or what the tightest of
    its control groups allows."""
    limits = (limit for folder in _own_groups() if (limit := _limit_of(folder)) is not None)
    return min([psutil.virtual_memory().total, *limits])


def _own_groups() -> Iterator[Path]:
    """The folders of this process's groups that may limit memory, each with those above it, whose limits hold too."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            base = GROUPS / "memory" if controllers else GROUPS
            own = base / path.strip("/")
            # In a container the path may be the host's: then only the base is there, and it is the container's group.
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(base))


def _limit_of(folder: Path) -> int | None:
    """Bytes that one group may take; None where it sets no limit."""
    for limit, _, _ in IN_GROUP:
        try:
            return int((folder / limit).read_text())
        except (OSError, ValueError):  # No such file, or the word "max".
            continue
    return None


def _free_in(folder: Path) -> int | None:
    """Bytes that are left in one group; None where it sets no limit."""
    for limit, use, reclaimable in IN_GROUP:
        try:
            left = int((folder / limit).read_text()) - int((folder / use).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # No such file, or the word "max".
            continue
        return max(0, left + int(stat.get(reclaimable, 0)))
    return None


def give_back_at_once() -> None:
    """From now on have the C library give memory back when it is freed: left to itself glibc raises the size from which
    it does so with every large piece that is freed, and keeps up to 32 MB of each for what may come."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        for option in (MMAP_THRESHOLD, TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, KEPT)
