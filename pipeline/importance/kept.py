"""What scoring and choosing know already: in files, for another start, or in memory for a call that is not resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.world import World

#: JSON-ready.
Value = TypeVar("Value")


class Kept:
    """JSON-ready values by name, each made once. ``folder``, the same for all processes, holds them; None: memory does.

    Numbers come back from JSON as they were, to the bit, so that it makes no difference which of the two it is. Raises
    RegrowError on a folder that is no Path.
    """

    def __init__(self, folder: Path | None, world: World):
        if not isinstance(folder, Path | None):
            raise RegrowError(f"folder {folder!r}: a pathlib.Path is wanted, or None to keep nothing")
        self._folder, self._world = folder, world
        self._values: dict[str, Any] = {}

    def names(self, begin: str) -> set[str]:
        """Names that begin so and are known to the first process, the same on every process."""
        found = None
        if self._world.rank == 0:
            every = self._values if self._folder is None else (path.stem for path in self._folder.glob("*.json"))
            found = {name for name in every if name.startswith(begin)}
        return self._world.broadcast(found)

    def put(self, name: str, value: object) -> None:
        """Keep what this process has made."""
        if self._folder is None:
            self._values[name] = value
        else:
            write_json(self._folder / f"{name}.json", value)

    def meet(self) -> None:
        """Wait for every process; afterwards each can get what any has put."""
        if self._folder is None:
            self._values = {name: value for share in self._world.gather(self._values) for name, value in share.items()}
        self._world.barrier()

    def get(self, name: str) -> Any:
        """What was put under the name, here or by another process before ``meet``."""
        return self._values[name] if self._folder is None else read_json(self._folder / f"{name}.json")

    def known(self, name: str, otherwise: Value) -> Value:
        """What the first process has put under the name, or ``otherwise``; the same on every process."""
        here = name in self._values if self._folder is None else (self._folder / f"{name}.json").exists()
        return self._world.broadcast(self.get(name) if here and self._world.rank == 0 else otherwise)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What is known under the name, or what ``make`` gives, which every process calls; the first one keeps it."""
        if name in self.names(name):
            return self._world.broadcast(self.get(name) if self._world.rank == 0 else None)
        value = make()
        if self._world.rank == 0:
            self.put(name, value)
        return value
