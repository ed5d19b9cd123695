"""evaluate/curve.jsonl: a line for each export of training that was judged, to which several jobs may add at once.

It is no part of what stage evaluate made, and nobody needs the run's lock for it: each job holds the export that it
judges, and for a moment the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import RegrowError
from pipeline.files import take_lock, write_atomic
from pipeline.run import Run
from pipeline.training.metrics import cut_after, json_line, read_lines

#: What a line is about: the weights, and what they were asked.
KEYS = ("step", "sha256", "protocol")


def curve_file(run: Run) -> Path:
    """Where the lines stand."""
    return run.stage("evaluate") / "curve.jsonl"


def working_folder(run: Run) -> Path:
    """Where jobs keep what is not finished."""
    return run.stage("evaluate") / "curve"


def lines_of_step(run: Run, step: int) -> list[dict[str, Any]]:
    """The lines of a step, one for each protocol."""
    return [line for line in read_lines(curve_file(run)) if line["step"] == step]


def add_line(run: Run, line: dict[str, Any]) -> bool:
    """Add a line in one atomic move; False, and nothing done, where it stands there already.

    A line of the same step and protocol speaks of weights that a resume of training replaced: it goes to
    curve.discarded.jsonl.
    """
    path = curve_file(run)
    with held_curve(run):
        lines = read_lines(path)
        if any(all(one[key] == line[key] for key in KEYS) for one in lines):
            return False
        replaced = [one for one in lines if (one["step"], one["protocol"]) == (line["step"], line["protocol"])]
        if replaced:
            with path.with_suffix(".discarded.jsonl").open("a", encoding="utf-8") as discarded:
                discarded.writelines(map(json_line, replaced))
        kept = [one for one in lines if one not in replaced]
        write_atomic(path, "".join(map(json_line, [*kept, line])))
    return True


def forget_behind(run: Run, step: int) -> None:
    """Move the lines of steps behind ``step``, which training does again at other rates, to curve.discarded.jsonl."""
    with held_curve(run):
        cut_after(curve_file(run), step)


@contextlib.contextmanager
def held_curve(run: Run) -> Iterator[None]:
    """Hold the file within the context: no other process adds a line, or moves it."""
    # Not within the stage's folder, which may be moved aside meanwhile.
    with (run.folder / ".curve.lock").open("a") as file:
        take_lock(file, fcntl.LOCK_EX, run.folder)
        yield


def require_unjudged(run: Run) -> None:
    """RegrowError where a job judges an export now."""
    for path in sorted(working_folder(run).glob("*.lock")):
        with path.open(encoding="utf-8") as file:
            if not take_lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB, run.folder):
                holder = file.read().strip() or "another process"
                raise RegrowError(f"run {run.name}: export {path.stem} is being judged by {holder}; wait for its end")


@contextlib.contextmanager
def claim(run: Run, export: str) -> Iterator[str | None]:
    """Hold an export while it is judged, so that no two jobs do the same; gives host and pid of whoever holds it, None
    for this process. The kernel lets go of it when the process ends."""
    path = working_folder(run) / f"{export}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, run.folder):
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        file.truncate(0)
        file.write(f"host {socket.gethostname()} pid {os.getpid()}")
        file.flush()
        yield None
        file.truncate(0)
