"""Progress: what a long piece of work over many files has finished, so that a killed one goes on where it was."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import IO, Any


class Progress:
    """What is finished, a JSON line a file.

    ``known`` maps the key of a file (what tells its content from others) to its entry. A line that a kill cut short is
    forgotten. Used as a context manager.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        self._file: IO[str] | None = None

    def __enter__(self) -> Progress:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+", encoding="utf-8")
        self._file.seek(0)
        whole, _, cut = self._file.read().rpartition("\n")
        for line in whole.splitlines():
            # What cannot be read is done again.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self.known[entry["key"]] = entry
        if cut:
            self._file.truncate(len(whole.encode()) + 1 if whole else 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keep(self, entry: dict[str, Any]) -> None:
        """Note ``entry`` (JSON, with its ``key``) as finished."""
        self.known[entry["key"]] = entry
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
