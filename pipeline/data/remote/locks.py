"""Locks: which files of a shared cache folder are in use, told by file locks.

The kernel takes a lock back from a process however it ends: what is not locked, nobody alive reads or writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

from pipeline.files import take_lock


def locked(path: Path, mode: str, lock: int) -> IO[bytes] | None:
    """``path`` opened and locked (waiting for it); None where the file was renamed or deleted meanwhile.

    RegrowError where the file system has no locks.
    """
    try:
        file = path.open(mode)
    except FileNotFoundError:
        return None
    with contextlib.ExitStack() as unless_kept:
        unless_kept.callback(file.close)
        take_lock(file, lock, path.parent)
        if not is_at(file, path):
            return None
        unless_kept.pop_all()
    return file


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
            if not take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent):
                return False
            if is_at(file, path):
                path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
