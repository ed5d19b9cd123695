"""Damage: the one error for bytes that are not what a shard should hold, and how every reader names the place.

A shard that was cut, flipped or badly written must never look like a shorter one. Decoders complain in many ways
(or, worse, end quietly); the readers of each format turn what they see into a DamagedShard that names the shard, the
first document that could not be read and, where the decoder knows it, the byte.
"""

from __future__ import annotations

import contextlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import RegrowError, first_line


class DamagedShard(RegrowError):
    """Bytes that cannot be what was written: cut, flipped, not JSON, empty, or gone."""


class BadRecord(DamagedShard):
    """One record that is none of its format, in a file that can be read on: its writer can mend it, another copy of the
    file need not help."""

    @classmethod
    def at(cls, path: Path, number: int, place: str, why: str, wanted: str) -> BadRecord:
        """For record ``number`` of the shard, at ``place`` in it; ``wanted`` is what its format has there."""
        return cls(
            f"shard {path}: document {number}, {place}: {why}; {wanted} is wanted: mend it at its source, or replace a "
            "file that was cut or changed on its way"
        )


@contextlib.contextmanager
def naming(path: Path, reached: Callable[[], int]) -> Iterator[None]:
    """Turn what decoders raise into a DamagedShard; ``reached()`` is the number of documents that were read.

    An error of the system (too many open files, no permission, a disk that does not answer) says nothing about the
    bytes: it becomes a plain RegrowError, so that nobody leaves out a good shard because of it.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedShard(f"shard {path}: missing; put it back") from error
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, tarfile.TarError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RegrowError(f"shard {path}: cannot be read ({error.strerror}); start again when it can") from error
        raise DamagedShard(
            f"shard {path}: damaged at document {reached()}: {first_line(error)}; replace it by an intact copy"
        ) from error


def require_documents(path: Path, documents: int, first: int) -> None:
    """DamagedShard when a whole shard held no document, or fewer than the ``first`` ones that were skipped."""
    if documents == 0:
        raise DamagedShard(f"shard {path}: empty, not one document in it; replace it or remove it from the source")
    if documents < first:
        raise DamagedShard(f"shard {path}: damaged: {documents} documents in it, and document {first} was asked for")
