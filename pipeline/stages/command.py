"""The command that began a stage: noted by the process that was asked, told by that which ends the stage."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from pipeline.files import write_atomic
from pipeline.run import Run


def note_command(stage: str, run: Run) -> None:
    """Keep this process's command line beside the stage's progress, as a person would type it."""
    write_atomic(_file(stage, run), shlex.join(["regrow", *sys.argv[1:]]) + "\n")


def noted_command(stage: str, run: Run) -> str | None:
    """The command that was noted last; None where none was."""
    path = _file(stage, run)
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _file(stage: str, run: Run) -> Path:
    return run.stage(stage) / "progress" / "command.txt"
