"""Answers that are known already: each batch's, as soon as it is done, in a file of lines for each process.

A batch is known by its content (tokens or texts, how it is to be answered, and what answers it: device, dtype, threads,
versions), so that a start that would round otherwise finds none of them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any


def batch_key(content: Any) -> str:
    """A batch's name: sha256 of its content as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Answers:
    """Answers by their batch's key, in ``folder``: those of all earlier starts are read, new ones go to this process's
    own file. A line that a kill has torn, or that is damaged otherwise, is passed over, and its batch done again."""

    def __init__(self, folder: Path, rank: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, list[Any]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                with contextlib.suppress(ValueError, KeyError):
                    record = json.loads(line)
                    self._known[record["batch"]] = record["answers"]
        self._path = folder / f"{rank}.jsonl"
        if self._path.exists():
            os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)
        self._file = FileIO(self._path, "a")

    def get(self, key: str) -> list[Any] | None:
        """The answers of a batch, None where they are not known."""
        return self._known.get(key)

    def add(self, key: str, answers: list[Any]) -> None:
        """Keep the answers of a batch: numbers, truths and texts, to the last digit. OSError on a full disk."""
        self._known[key] = answers
        line = (json.dumps({"batch": key, "answers": answers}) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Nothing more is added."""
        self._file.close()
