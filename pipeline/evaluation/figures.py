"""Figures that are finished: each in a file under the hash of all that fixes it, for a resume to take as they are."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import RegrowError
from pipeline.evaluation.windows import TextRows
from pipeline.files import hash_json, read_json, write_json
from pipeline.world import World


class Figures:
    """Figures in ``folder``, of what is computed from weights, texts and settings. Every process constructs it."""

    def __init__(self, folder: Path, world: World):
        self._folder, self._world = folder, world
        self._given_by = computed_by(world.device)

    def of(self, fixed: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What ``make()`` gives on the first process, on every process: kept where it was made before from the same.

        ``fixed``: all that decides it, as JSON. Every process calls this, and ``make`` where it must be made.
        """
        found, known = self._world.on_first(lambda: self.find(fixed))
        if known:
            return found
        made = make()
        self._world.on_first(lambda: self.keep(fixed, made))
        return self._world.broadcast(made)

    def find(self, fixed: Mapping[str, Any]) -> tuple[Any, bool]:
        """What is kept of ``fixed``, and whether anything is; of the process that asks."""
        path = self._path(fixed)
        if path.exists():
            # What is damaged is made anew.
            with contextlib.suppress(RegrowError):
                return read_json(path), True
        return None, False

    def keep(self, fixed: Mapping[str, Any], made: Any) -> None:
        """Keep what was made of ``fixed``; one process calls it."""
        write_json(self._path(fixed), made)

    def _path(self, fixed: Mapping[str, Any]) -> Path:
        return self._folder / f"{hash_json({**fixed, 'given_by': self._given_by})}.json"


def computed_by(device: torch.device) -> dict[str, Any]:
    """What decides the last digits of what a process computes on ``device``, beside what it computes: the GPU's name,
    or "cpu" and its threads, and the versions."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": None if on_gpu else torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def hash_rows(text: TextRows) -> str:
    """sha256 of a text's rows, their shape, and where their targets begin."""
    sha256 = hashlib.sha256(str(tuple(text.rows.shape)).encode())
    for tensor in (text.rows, text.counted_from):
        sha256.update(tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest()
