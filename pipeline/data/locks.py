"""Locks: which files of a shared cache folder are in use, told by file locks.

The kernel takes a lock back from a process however it ends: what is not locked, nobody alive reads or writes.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from pipeline.run import RegrowError


def locked(path: Path, mode: str, lock: int) -> IO[bytes] | None:
    """``path`` opened and locked (waiting for it); None where the file was renamed or deleted meanwhile."""
    try:
        file = path.open(mode)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, lock)
    except OSError as error:
        file.close()
        raise RegrowError(f"{path.parent}: this file system has no file locks ({error.strerror}); "
                          "put the cache on a local disk") from None  # fmt: skip
    if is_at(file, path):
        return file
    file.close()
    return None


def is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open ``file`` is the one that ``path`` names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def delete_unless_in_use(path: Path) -> bool:
    """Whether ``path`` is gone now: a file that a living process has locked, this one too, stays."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(file, path):
                path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
