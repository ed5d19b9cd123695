"""Going on from a checkpoint, in whatever layout it was written.

A process reads, of all files, the pieces that overlap what it holds: the same bytes in the same layout (then of its own
file alone), and in any other the same values in other hands. Nothing is converted, and no more is in memory at a time
than one piece.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import RegrowError
from pipeline.files import read_json
from pipeline.model.headers import opened
from pipeline.training.checkpoint import file_of
from pipeline.training.engine import Engine
from pipeline.training.fragments import KINDS, Fragment, buffers, held, set_groups, take_up
from pipeline.world import World


def load_checkpoint(folder: Path, engine: Engine, world: World, seed: int = 0) -> None:
    """Put the engine (weights, moments, settings, counters) and the random state back as they were; every process calls
    it.

    With another number of processes, or on another kind of device, the random state begins anew: from ``seed``, the
    step and the rank. Raises RegrowError where the checkpoint is of other parameters.
    """
    state = read_json(folder / "state.json")
    problem = set_groups(engine, state["optimizer"])
    if problem is not None:
        raise RegrowError(f"checkpoint {folder}: of another model ({problem}); begin again with --redo train")
    _read_fragments(folder, held(engine), world.rank, state["layout"]["processes"])
    _read_buffers(folder, engine)
    take_up(engine)
    for name, value in state["engine"].items():
        setattr(engine.engine, name, value)
    _restore_random(folder, state, world, seed)


def _read_fragments(folder: Path, wanted: list[Fragment], rank: int, files: int) -> None:
    """Fill the fragments from the files of a checkpoint that ``files`` processes wrote; its own one first."""
    missing = sum(fragment.length for fragment in wanted)
    by_name: dict[str, list[Fragment]] = {}
    for fragment in wanted:
        by_name.setdefault(fragment.name, []).append(fragment)
    for number in sorted(range(files), key=lambda other: other != rank):
        if not missing:
            return
        with opened(folder / file_of(number)) as tensors:
            for name, (offset, length, updates) in json.loads(tensors.metadata()["fragments"]).items():
                for fragment in by_name.get(name, ()):
                    missing -= _overlap(fragment, tensors, offset, length, updates)
    if missing:
        raise RegrowError(f"checkpoint {folder}: {missing:,} values of its parameters are in none of its files")


def _overlap(fragment: Fragment, tensors: Any, offset: int, length: int, updates: int) -> int:
    """Read what a piece of the fragment's parameter has of it; how many values."""
    begin, end = max(offset, fragment.offset), min(offset + length, fragment.offset + fragment.length)
    if begin >= end:
        return 0
    for kind in KINDS:
        piece = tensors.get_slice(f"{kind}/{fragment.name}")[begin - offset : end - offset]
        fragment.values[kind][begin - fragment.offset : end - fragment.offset].copy_(piece)
    fragment.updates.fill_(updates)
    return end - begin


def _read_buffers(folder: Path, engine: Engine) -> None:
    found = buffers(engine)
    if not found:
        return
    with opened(folder / file_of(0)) as tensors:
        for name, value in found.items():
            value.copy_(tensors.get_tensor(f"buffer/{name}"))


def _restore_random(folder: Path, state: dict[str, Any], world: World, seed: int) -> None:
    written, device = state["layout"], world.device
    if written["processes"] != world.size or written["device"] != device.type:
        drawn = hashlib.sha256(f"{seed} {state['step']} {world.rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(drawn[:8], "little"))
        return
    with opened(folder / file_of(world.rank)) as tensors:
        torch.set_rng_state(tensors.get_tensor("random/cpu"))
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors.get_tensor("random/cuda"), device)
