"""Saving beside the loop: training waits for a copy to host memory alone, and goes on while it is written.

One thread of each process writes its files down to the disk, hashes them on the way, and leaves a note
(``written-RRRRR.json``) of what it wrote. The first process's thread gathers these notes, writes COMPLETE, and takes
older checkpoints away. No thread talks to another process but by these files. What went wrong is agreed on at the
next step boundary, in a small sum over all processes that is made only while a checkpoint is being written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import RegrowError, first_line
from pipeline.files import of_bytes, read_json, require_space, write_json
from pipeline.memory import available_memory
from pipeline.training.checkpoint import (
    FORMAT,
    Kept,
    Layout,
    checkpoint_bytes,
    clear_torn,
    complete_checkpoints,
    file_of,
    folder_of,
)
from pipeline.training.engine import Engine
from pipeline.training.fragments import buffers, groups, own
from pipeline.training.writing import Staged, header, size_of, values, write

#: What DeepSpeed's engine counts.
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
#: Seconds that the first process's thread waits for the notes of the others behind its own; and between two looks.
PATIENCE, PAUSE = 3600.0, 0.05
#: Seconds that a process that ends by an error gives its writing.
LEAVE = 120.0
#: Seconds that a process waits to see a folder that the first one made: a network's file system tells it late.
SEEN = 30.0
#: The two newest ones stay, unless it is asked for otherwise.
TWO = Kept()
#: Free memory that a copy must leave, as a share of the copy.
MARGIN = 0.25


@dataclass
class Writing:
    """A checkpoint under way, as this process sees it: its folder, what is known of the run, and what went wrong."""

    folder: Path
    step: int
    state: Mapping[str, Any]
    given_up: threading.Event = field(default_factory=threading.Event)
    problem: str | None = None


class Checkpoints:
    """A run's checkpoints as one process writes them. Every process makes one, and makes the same calls.

    ``background``: the loop does not wait for the disk, where host memory holds a copy of what is written. ``say`` is
    told where it does not.
    """

    def __init__(
        self,
        root: Path,
        engine: Engine,
        layout: Layout,
        *,
        kept: Kept = TWO,
        background: bool = True,
        say: Any = print,
    ):
        self.root, self.kept, self.waited = root, kept, 0.0
        self._engine, self._world, self._layout = engine, engine.world, layout
        self._background, self._say = background, say
        self._staged: Staged | None = None
        self._writing: Writing | None = None
        self._thread: threading.Thread | None = None

    @property
    def under_way(self) -> bool:
        """Whether this process, or the first one's COMPLETE, is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin the checkpoint of ``step``, once the one before is complete; ``state`` goes into state.json.

        When this returns training may go on. Raises RegrowError on every process where one could not write the one
        before, or cannot begin this one. Earlier checkpoints stay.
        """
        self.wait()
        begin = time.perf_counter()
        folder = folder_of(self.root, step)
        self._make(folder)
        tensors, about = self._tensors()
        staged = self._copied(tensors)
        parts = chain([header(tensors, about)], values(tensors) if staged is None else staged.values())
        known = {
            **state,
            "format": FORMAT,
            "layout": asdict(self._layout),
            "optimizer": groups(self._engine),
            "engine": {name: getattr(self._engine.engine, name) for name in COUNTERS},
        }
        self._writing = Writing(folder, step, known)
        self._thread = threading.Thread(target=self._write, args=(self._writing, parts), daemon=True)
        self._thread.start()
        if staged is None:
            self.wait()
        self.waited = time.perf_counter() - begin

    def look(self, wait: bool = False) -> None:
        """At a step boundary: agree on whether the checkpoint under way is complete. RegrowError on every process where
        one could not write its part."""
        while self._writing is not None and self._thread is not None:
            if wait:
                self._thread.join(PAUSE)
            alive = self._thread.is_alive()
            seen = torch.tensor([self._writing.problem is not None, alive], dtype=torch.int64)
            failed, writing = self._world.sum(seen).tolist()
            if failed:
                self._fail(self._writing)
            if not writing:
                self._writing = self._thread = None
            elif not wait:
                return

    def wait(self) -> None:
        """Wait until the checkpoint under way is complete; every process calls it. Raises as ``look`` does."""
        self.look(wait=True)

    def leave(self) -> None:
        """On the way out, behind an error that the others may not have met: give what is being written time to be
        complete, without a word to them."""
        if self._writing is None or self._thread is None:
            return
        end = time.monotonic() + LEAVE
        self._thread.join(LEAVE)
        # The first process, too, must come to its COMPLETE: a launcher ends it when this one has ended.
        complete = self._writing.folder / "COMPLETE"
        while self._writing.problem is None and not complete.exists() and time.monotonic() < end:
            time.sleep(PAUSE)

    def close(self) -> None:
        """Give the host memory back; nothing may be under way."""
        if self._staged is not None:
            self._staged.close()
            self._staged = None

    def _make(self, folder: Path) -> None:
        """An empty folder that every process sees."""
        problem = None
        if self._world.rank == 0:
            try:
                (folder / "COMPLETE").unlink(missing_ok=True)
                clear_torn(self.root)
                require_space(self.root, checkpoint_bytes(self._engine.parameters), f"checkpoint {folder.name}")
                folder.mkdir(parents=True)
            except (RegrowError, OSError) as error:
                problem = _reason(error)
        problem = self._world.broadcast(problem)
        end = time.monotonic() + SEEN
        while problem is None and not folder.is_dir():
            if time.monotonic() > end:
                problem = f"rank {self._world.rank} does not see it: run.folder must be one that all machines share"
            time.sleep(PAUSE)
        problems = [found for found in self._world.gather(problem) if found]
        if problems:
            self._unwritten(folder, problems[0])

    def _tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What this process writes, by name, and what the file says of it."""
        fragments = own(self._engine)
        tensors = {f"{kind}/{part.name}": value for part in fragments for kind, value in part.values.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if self._world.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self._world.device)
        if self._world.rank == 0:
            tensors |= {f"buffer/{name}": value for name, value in buffers(self._engine).items()}
        counts = {id(part.updates): part.updates for part in fragments}
        updates = {key: int(count) for key, count in counts.items()}
        places = {part.name: [part.offset, part.length, updates[id(part.updates)]] for part in fragments}
        return tensors, {"fragments": json.dumps(places, separators=(",", ":"))}

    def _copied(self, tensors: Mapping[str, torch.Tensor]) -> Staged | None:
        """The tensors in host memory; None where they are to be written from where they are."""
        if self._background and self._staged is None:
            size = size_of(tensors)
            free = available_memory()
            enough = free > (1 + MARGIN) * size * self._world.on_this_machine
            seen = self._world.gather((enough, size, free))
            if all(found[0] for found in seen):
                self._staged = Staged(tensors)
            else:
                self._background = False
                _, size, free = next(found for found in seen if not found[0])
                self._say(
                    f"host memory ({of_bytes(free)} free on a machine) does not hold {of_bytes(size)} of a checkpoint "
                    "for each process there: training waits while one is written"
                )
        if self._staged is not None:
            self._staged.fill(tensors)
        return self._staged

    def _write(self, writing: Writing, parts: Iterable[bytes | memoryview]) -> None:
        """This process's files, and its note of them; on the first process the rest as well."""
        rank, folder = self._world.rank, writing.folder
        try:
            files = {file_of(rank): write(folder / file_of(rank), parts)}
            if rank == 0:
                text = json.dumps(writing.state, indent=2, ensure_ascii=False) + "\n"
                files["state.json"] = write(folder / "state.json", [text.encode()])
            write_json(_note(folder, rank), files)
            if rank == 0:
                self._complete(writing)
        except Exception as error:
            writing.problem = f"rank {rank}: {_reason(error)}"

    def _complete(self, writing: Writing) -> None:
        """COMPLETE, once the notes of all processes are there."""
        end, listed = time.monotonic() + PATIENCE, {}
        for rank in range(self._world.size):
            note = _note(writing.folder, rank)
            while not note.exists():
                if writing.given_up.wait(PAUSE):
                    return
                if time.monotonic() > end:
                    raise RegrowError(
                        f"of rank {rank} nothing came in {PATIENCE:.0f} s; all machines must share run.folder"
                    )
            listed |= read_json(note)
        for rank in range(self._world.size):
            _note(writing.folder, rank).unlink()
        write_json(writing.folder / "COMPLETE", {"step": writing.step, "files": dict(sorted(listed.items()))})
        for old in self.kept.gone(complete_checkpoints(self.root)):
            # What cannot be taken away now is no reason to end a run: the next save tries again.
            with contextlib.suppress(OSError):
                # The marker goes first: a kill in between leaves an incomplete folder, not a torn checkpoint.
                (old / "COMPLETE").unlink(missing_ok=True)
                shutil.rmtree(old)

    def _fail(self, writing: Writing) -> None:
        """Raise what went wrong on any process, once none writes any more."""
        writing.given_up.set()
        assert self._thread is not None
        self._thread.join()
        problems = [found for found in self._world.gather(writing.problem) if found]
        self._writing = self._thread = None
        self._unwritten(writing.folder, problems[0])

    def _unwritten(self, folder: Path, problem: str) -> None:
        if self._world.rank == 0 and not (folder / "COMPLETE").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise RegrowError(
            f"checkpoint {folder}: could not be written ({problem}); earlier checkpoints stay. Make room, or see to "
            "the disk, and start the same command again: it goes on from the newest one"
        )


def _note(folder: Path, rank: int) -> Path:
    return folder / f"written-{rank:05d}.json"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full, or a quota or a limit on the size of files was met: {error.strerror}"
    return str(error) if isinstance(error, RegrowError | OSError) else f"{type(error).__name__}: {first_line(error)}"
