"""What became of a stage's starts: a line for each start and for each failure, in the stage's folder.

``regrow status`` tells from it how often a stage was started, and what it last failed by. It is no progress: a job that
is started again and again to no avail is known by progress that does not grow.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from pipeline.run import HISTORY, Run
from pipeline.training.metrics import LineFile, read_lines

#: Of a message so many characters are kept: log.txt has it whole.
KEPT = 500


def note_start(stage: str, run: Run) -> None:
    """A stage is begun, or gone on with, by this process."""
    _note(stage, run, {"event": "start", "host": socket.gethostname(), "pid": os.getpid()})


def note_failure(stage: str, run: Run, rank: int | None, message: str) -> None:
    """A stage was ended by what ``message`` says, on process ``rank``; None: on which one is not known."""
    # Of a stage that was not begun, or is done, a start was refused, and nothing of it failed.
    if _file(stage, run).exists() and run.record(stage) is None:
        _note(stage, run, {"event": "failure", "rank": rank, "message": message[:KEPT]})


def note_silence(stage: str, run: Run) -> None:
    """A stage did not finish. Where none of its processes has said why since its last start, that is noted."""
    # Of a disk that takes no more the error that is under way tells more than this.
    with contextlib.suppress(OSError):
        if not failed_since_start(stage, run):
            note_failure(stage, run, None, "a process was killed, or ended without a message")


def told_history(stage: str, run: Run) -> list[dict[str, Any]]:
    """Starts (``date``, ``host``, ``pid``) and failures (``date``, ``rank``, ``message``) of a stage by their
    ``event``, in their order; none of a stage that an earlier release began."""
    return read_lines(_file(stage, run))


def failed_since_start(stage: str, run: Run) -> bool:
    """Whether the last start has left a message why it failed."""
    lines = told_history(stage, run)
    return bool(lines) and lines[-1]["event"] == "failure"


def _note(stage: str, run: Run, line: dict[str, Any]) -> None:
    lines = LineFile(_file(stage, run))
    lines.append({"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **line})
    lines.close()


def _file(stage: str, run: Run) -> Path:
    return run.stage(stage) / HISTORY
