"""Files as a run needs them: whole or not there, hashed, locked, and with room beside them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import RegrowError

#: Files that lines are added to in place; all others are written anew.
ADDED_TO = ".jsonl"
#: Units of bytes, the largest first.
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends well, and is removed when it does not: a
    reader sees the old file or the new one, also after a crash.

    Raises RegrowError when the disk is full or the folder cannot be written; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RegrowError(f"{path}: cannot be written ({error.strerror}); nothing was lost") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``, as ``replacing`` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, remedy: str = "move it aside and redo its stage") -> Any:
    """The JSON in ``path``; RegrowError names the file when it is missing or damaged, and the ``remedy`` of the latter:
    a file that no stage wrote has another."""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.startswith("\ufeff"):
            return json.loads(text)
    except OSError as error:
        raise RegrowError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise RegrowError(f"{path}: damaged, not valid JSON ({error}); {remedy}") from None
    raise RegrowError(f"{path}: begins with a byte order mark (BOM), which no JSON may; save it as UTF-8 without one")


def link_or_copy(source: Path, target: Path) -> bool:
    """The file at another place too: hard-linked where the disk can, else copied; whether it could be linked.

    One that lines are added to in place is copied: a line that is added to either is not to stand in both.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix != ADDED_TO:
        try:
            os.link(source, target)
            return True
        except OSError:
            # Another disk, or one without links.
            pass
    shutil.copy2(source, target)
    return False


def hash_json(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_bytes(count: float) -> str:
    """A number of bytes for a line of text, in the unit that suits its size (powers of ten): 1.25 GB, 310.00 kB."""
    unit, size = next(((unit, size) for unit, size in UNITS if count >= size), ("bytes", 1))
    return f"{count / size:.2f} {unit}" if size > 1 else f"{count:.0f} bytes"


def require_space(folder: Path, needed: int, what: str) -> None:
    """RegrowError unless ``folder``'s disk has ``needed`` bytes free (and a tenth more)."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise RegrowError(
            f"no space for {what}: {of_bytes(needed)} needed in {folder}, {of_bytes(free)} free; "
            "free some space and start the same command again, it goes on from here"
        )


def require_writable(folder: Path, key: str) -> None:
    """RegrowError unless a file can be made in ``folder``, which need not be there yet; leaves nothing behind.

    ``key`` is the config's key that names the folder.
    """
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryDirectory(dir=place, prefix=".trial-") as trial:
            # Its own names: one may be longer than the file system takes.
            there = trial / folder.absolute().relative_to(place)
            there.mkdir(parents=True, exist_ok=True)
            (there / "file").touch()
    except OSError as error:
        where = "" if place == folder.absolute() else f": {place}"
        raise RegrowError(f"{folder}{where} cannot be written ({error.strerror}); set {key} to another place") from None


def take_lock(file: IO[Any], lock: int, place: Path) -> bool:
    """Lock the open ``file`` (``fcntl``'s flags); False where ``LOCK_NB`` was among them and another process holds it.

    RegrowError where the file system of ``place`` has no locks, which does not mean that anybody works there.
    """
    try:
        fcntl.flock(file, lock)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RegrowError(
            f"{place}: this file system has no file locks ({error.strerror}); take a place on one that has them, or "
            "have it mounted with them (Lustre: -o flock)"
        ) from None
    return True
