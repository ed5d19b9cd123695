"""Checkpoints: everything that a run needs to go on as if nothing had happened, complete or not there at all.

A checkpoint is a folder: ``rank-RRRRR.safetensors`` of each process (its pieces of masters and moments, its random
state; the first one has the model's buffers too) and ``state.json`` (step, tokens, the lanes' cursors, AdamW's
settings, the layout). ``COMPLETE`` is written last, once all are there, with size and sha256 of every file; a folder
without it is the rest of a save that was cut off and counts for nothing.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RegrowError
from pipeline.files import hash_file, read_json
from pipeline.training.fitting import Fit
from pipeline.world import ALONE, World

#: Of state.json: checkpoints before had DeepSpeed's files, and none.
FORMAT = 2


@dataclass(frozen=True)
class Layout:
    """How a run is laid out on processes and devices. With the same one a resume ends in the same bytes; with another
    in the same samples and their order. ``threads`` is None on a GPU: sums there do not depend on it, and nodes differ
    in cores."""

    processes: int
    micro_batch: int
    zero_stage: int
    threads: int | None
    dtype: str
    device: str
    gradient_checkpointing: str
    compiled: bool

    @classmethod
    def of(cls, world: World, fit: Fit, zero_stage: int, dtype: str, compiled: bool) -> Layout:
        """The layout of a run on these processes."""
        return cls(
            processes=world.size,
            micro_batch=fit.micro_batch,
            zero_stage=zero_stage,
            threads=world.threads if world.device.type == "cpu" else None,
            dtype=dtype,
            device=world.device.type,
            gradient_checkpointing=fit.gradient_checkpointing,
            compiled=compiled,
        )

    def change(self, written: Mapping[str, Any]) -> str | None:
        """A line on going on from a checkpoint that was ``written`` in another layout; None where it was in this."""
        differing = _differing(self, written)
        if not differing:
            return None
        return (
            f"going on in another layout ({'; '.join(differing)}): samples and their order stay, last digits may differ"
        )


def folder_of(root: Path, step: int) -> Path:
    """The folder of step ``step`` under ``root``: step-00000100."""
    return root / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder, or of an export's."""
    return int(folder.name.removeprefix("step-"))


def file_of(rank: int) -> str:
    """The name of a process's file in a checkpoint: rank-00003.safetensors."""
    return f"rank-{rank:05d}.safetensors"


def complete_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints under ``root``, oldest first."""
    return sorted(path.parent for path in root.glob("step-????????/COMPLETE"))


def missing_file(folder: Path) -> Path | None:
    """The first file of a complete checkpoint that is not there, or of another size than was written; None where all
    are. Whether they hold what was written is seen when training goes on from it."""
    files = read_json(folder / "COMPLETE")["files"]
    paths = ((folder / name, entry["bytes"]) for name, entry in sorted(files.items()))
    return next((path for path, size in paths if not path.is_file() or path.stat().st_size != size), None)


def clear_torn(root: Path) -> None:
    """Take away what saves that were cut off have left under ``root``: it counts for nothing and takes up space."""
    for torn in set(root.glob("step-????????")) - set(complete_checkpoints(root)):
        shutil.rmtree(torn, ignore_errors=True)


def checkpoint_bytes(parameters: int) -> int:
    """Size of a checkpoint: fp32 masters of what is trained, and AdamW's two moments."""
    return 12 * parameters


@dataclass(frozen=True)
class Kept:
    """Which complete checkpoints stay: the ``newest`` so many, and all at a multiple of ``every`` steps."""

    newest: int = 2
    every: int | None = None

    def gone(self, complete: list[Path]) -> list[Path]:
        """Those of the ``complete`` ones, oldest first, that go."""
        old = complete[: -self.newest]
        return [folder for folder in old if not (self.every and step_of(folder) % self.every == 0)]

    def at_once(self, steps: int, every: int) -> int:
        """How many stand at most in a run of ``steps`` with one at each multiple of ``every`` and at the end: those
        that stay, and the one that is being written."""
        always = 0 if self.every is None else steps // math.lcm(every, self.every)
        return min(-(-steps // every), self.newest + 1 + always)


def newest_checkpoint(root: Path, layout: Layout, world: World = ALONE) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint and its state, verified; None when there is none. Every process calls it, and
    reads its share of the files.

    Raises RegrowError when it is damaged (naming the file, and the checkpoint before it to fall back on), or cannot be
    gone on from: it is of an earlier format, or of another dtype. The first process raises it, the others end.
    """
    found = world.on_first(lambda: _newest(root))
    if found is None:
        return None
    folder, files, before = found
    own = [name for name, entry in files[world.rank :: world.size] if _is_damaged(folder / name, entry)]
    damaged = sorted(name for share in world.gather(own) for name in share)

    def judged() -> dict[str, Any]:
        if damaged:
            raise RegrowError(
                f"checkpoint {folder}: {damaged[0]} is damaged or missing; nothing was changed. To go on from "
                f"{before}, move {folder.name} out of {root}"
            )
        state = read_json(folder / "state.json")
        _require_format(folder, state)
        began = state["layout"].get("dtype")
        if began != layout.dtype:
            raise RegrowError(
                f"checkpoint {folder}: dtype was {began}, is {layout.dtype}; the model would compute otherwise than "
                "the run began. Take the dtype that it began with, or begin again with --redo train"
            )
        return state

    return folder, world.on_first(judged)


def _newest(root: Path) -> tuple[Path, list[tuple[str, dict[str, Any]]], str] | None:
    """The newest checkpoint, its files with what is known of them, and what to fall back on."""
    found = complete_checkpoints(root)
    if not found:
        return None
    before = f"the one before it, {found[-2].name}" if len(found) > 1 else "the pruned model, step 0"
    return found[-1], sorted(read_json(found[-1] / "COMPLETE")["files"].items()), before


def _is_damaged(path: Path, entry: Mapping[str, Any]) -> bool:
    return not path.is_file() or path.stat().st_size != entry["bytes"] or hash_file(path) != entry["sha256"]


def _require_format(folder: Path, state: Mapping[str, Any]) -> None:
    if state.get("format") != FORMAT:
        raise RegrowError(
            f"checkpoint {folder}: of an earlier version of regrow, with DeepSpeed's files, which this one does not "
            "read. End the run with the version that began it, or begin again with --redo train"
        )


def _differing(layout: Layout, written: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {written.get(name)}, is {value}"
        for name, value in asdict(layout).items()
        if written.get(name) != value
    ]
