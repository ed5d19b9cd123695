"""A file that appears whole or not at all, for files that are too large for one string."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.run import RegrowError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends well, and is removed when it does not.

    Raises RegrowError when the disk is full or the folder cannot be written.
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
