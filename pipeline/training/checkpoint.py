"""Checkpoints: everything that a run needs to go on as if nothing had happened, complete or not there at all.

A checkpoint is a folder with DeepSpeed's files, each rank's random state, and ``state.json`` (step, tokens, the
lanes' cursors, the layout). ``COMPLETE`` is written last, behind a barrier, with size and sha256 of every file; a
folder without it is the rest of a save that was cut off and counts for nothing.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import RegrowError
from pipeline.files import hash_file, read_json, require_space, write_json
from pipeline.training.engine import Engine
from pipeline.training.fitting import Fit
from pipeline.world import World


@dataclass(frozen=True)
class Layout:
    """How a run is laid out on processes and devices. All of it must agree for a resume: with any other the bytes could
    not be the same. ``threads`` is None on a GPU: sums there do not depend on it, and nodes differ in cores."""

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


def folder_of(root: Path, step: int) -> Path:
    """The folder of step ``step`` under ``root``: step-00000100."""
    return root / f"step-{step:08d}"


def complete_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints under ``root``, oldest first."""
    return sorted(path.parent for path in root.glob("step-????????/COMPLETE"))


def clear_torn(root: Path) -> None:
    """Take away what saves that were cut off have left under ``root``: it counts for nothing and takes up space."""
    for torn in set(root.glob("step-????????")) - set(complete_checkpoints(root)):
        shutil.rmtree(torn, ignore_errors=True)


def checkpoint_bytes(parameters: int, zero_stage: int, dtype: torch.dtype) -> int:
    """Size of a checkpoint: the weights that are trained, and fp32 master weights with AdamW's two moments."""
    if zero_stage == 0:
        return 12 * parameters
    return (torch.finfo(dtype).bits // 8 + 12) * parameters


def save_checkpoint(
    root: Path, engine: Engine, world: World, *, step: int, state: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of ``step``; every process calls it. Keeps the ``keep`` newest complete ones.

    ``state`` goes into state.json. Raises RegrowError when a process could not write (a full disk), on that process
    at least: the others may be left waiting for it. Earlier checkpoints stay.
    """
    folder = folder_of(root, step)
    problem = None
    if world.rank == 0:
        try:
            shutil.rmtree(folder, ignore_errors=True)
            clear_torn(root)
            needed = checkpoint_bytes(engine.parameters, engine.zero_stage, engine.dtype)
            require_space(root, needed, f"checkpoint {step}")
            folder.mkdir(parents=True)
        except (RegrowError, OSError) as error:
            problem = str(error)
    _agree(world, problem, folder)
    try:
        # What stands frozen beside adapters is in the folder that training began with.
        engine.engine.save_checkpoint(
            str(root), tag=folder.name, save_latest=False, exclude_frozen_parameters=engine.frozen
        )
    except (OSError, RuntimeError) as error:
        if not _is_writing(error):
            raise
        # The others may wait in a barrier inside DeepSpeed, where no message reaches them: this process says it and
        # ends, and the launcher ends them. The folder stays until the next start: the others may be writing in it.
        raise _unwritten(folder, f"rank {world.rank}: {_reason(error)}") from error
    try:
        torch.save(_random_state(), folder / f"random-{world.rank:05d}.pt")
        if world.rank == 0:
            write_json(folder / "state.json", dict(state))
    except (OSError, RuntimeError, RegrowError) as error:
        problem = f"rank {world.rank}: {_reason(error)}"
    _agree(world, problem, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    own = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in files[world.rank :: world.size]
    }
    listed = {name: entry for share in world.gather(own) for name, entry in share.items()}
    if world.rank == 0:
        write_json(folder / "COMPLETE", {"step": step, "files": dict(sorted(listed.items()))})
        for old in complete_checkpoints(root)[:-keep]:
            # The marker goes first: a kill in between leaves an incomplete folder, not a torn checkpoint.
            (old / "COMPLETE").unlink()
            shutil.rmtree(old)
    world.barrier()
    return folder


def newest_checkpoint(root: Path, layout: Layout) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint and its state, verified; None when there is none.

    Raises RegrowError when it is damaged (naming the file, and the checkpoint before it to fall back on) or was
    written in another layout (naming both values).
    """
    found = complete_checkpoints(root)
    if not found:
        return None
    folder = found[-1]
    for name, entry in read_json(folder / "COMPLETE")["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"] or hash_file(path) != entry["sha256"]:
            before = f"the one before it, {found[-2].name}" if len(found) > 1 else "the pruned model, step 0"
            raise RegrowError(
                f"checkpoint {folder}: {name} is damaged or missing; nothing was changed. To go on from {before}, "
                f"move {folder.name} out of {root}"
            )
    state = read_json(folder / "state.json")
    differing = [
        f"{name} was {state['layout'].get(name)}, is {value}"
        for name, value in asdict(layout).items()
        if state["layout"].get(name) != value
    ]
    if differing:
        raise RegrowError(
            f"checkpoint {folder}: written in another layout ({'; '.join(differing)}). A run resumes in its own "
            "layout only: start it as before, or begin again with --redo train"
        )
    return folder, state


def load_checkpoint(folder: Path, engine: Engine, world: World) -> None:
    """Put the engine (weights, moments, counters) and the random state back as they were; every process calls it."""
    # DeepSpeed would unpickle whatever stands in the files.
    engine.engine.checkpoint_engine.load = _load_weights_only
    # Its bf16 optimizer prints a line of its own for every group, whatever the log level.
    with contextlib.redirect_stdout(io.StringIO()):
        loaded, _ = engine.engine.load_checkpoint(
            str(folder.parent), tag=folder.name, load_module_strict=not engine.frozen
        )
    if loaded is None:
        raise RegrowError(f"checkpoint {folder}: DeepSpeed found nothing to load in it")
    random = torch.load(folder / f"random-{world.rank:05d}.pt", weights_only=True)
    torch.set_rng_state(random["cpu"])
    if world.device.type == "cuda":
        torch.cuda.set_rng_state(random["device"], world.device)


def _load_weights_only(path: str, map_location: Any = None) -> Any:
    """A file of DeepSpeed's checkpoint: tensors, plain values, and the three classes that it keeps beside them."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["device"] = torch.cuda.get_rng_state()
    return state


def _agree(world: World, problem: str | None, folder: Path) -> None:
    """Raise on every process when one has a problem, and take the unfinished folder away."""
    problems = [entry for entry in world.gather(problem) if entry]
    if problems:
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise _unwritten(folder, problems[0])


def _is_writing(error: Exception) -> bool:
    """Whether this is a file that could not be written, as torch's writer in C++ says it; not a lost connection."""
    return isinstance(error, OSError) or "inline_container" in str(error)


def _reason(error: Exception) -> str:
    if isinstance(error, RuntimeError) and _is_writing(error):
        return f"the disk is full, or a quota or a limit on the size of files was met; torch says: {error}"
    return str(error)


def _unwritten(folder: Path, problem: str) -> RegrowError:
    return RegrowError(
        f"checkpoint {folder}: could not be written ({problem}); earlier checkpoints stay. Make room, or see to the "
        "disk, and start the same command again: it goes on from the newest one"
    )
