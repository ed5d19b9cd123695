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
        device = world.device
        on_gpu = device.type == "cuda"
        # What decides the last digits, beside what each figure is made of.
        self._given_by = {
            "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "threads": None if on_gpu else world.threads,
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }

    def of(self, fixed: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What ``make()`` gives on the first process, on every process: kept where it was made before from the same.

        ``fixed``: all that decides it, as JSON. Every process calls this, and ``make`` where it must be made.
        """
        path = self._folder / f"{hash_json({**fixed, 'given_by': self._given_by})}.json"
        found, known = self._world.on_first(lambda: self._read(path))
        if known:
            return found
        made = make()
        self._world.on_first(lambda: write_json(path, made))
        return self._world.broadcast(made)

    @staticmethod
    def _read(path: Path) -> tuple[Any, bool]:
        if path.exists():
            # What is damaged is made anew.
            with contextlib.suppress(RegrowError):
                return read_json(path), True
        return None, False


def hash_rows(text: TextRows) -> str:
    """sha256 of a text's rows, their shape, and where their targets begin."""
    sha256 = hashlib.sha256(str(tuple(text.rows.shape)).encode())
    for tensor in (text.rows, text.counted_from):
        sha256.update(tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest()
