"""A command that prints as it goes, has a time to end in, and leaves nothing running behind it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO

import psutil

from pipeline.launch import die_with_parent


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, None if it was stopped at its limit; seconds; the lines that it printed."""

    status: int | None
    seconds: float
    lines: list[str]


def start(command: list[str], folder: Path, output: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command, in ``folder`` and in a session of its own, its errors in its output; it ends when this process
    ends."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a process and for all that it started, and wait for it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        for member in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


def carry_out(command: list[str], folder: Path, limit: float) -> Ended:
    """Run a command in ``folder`` to its end or for ``limit`` seconds, printing its lines as they come."""
    begin, lines = monotonic(), []
    process = start(command, folder)

    def read() -> None:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            print(line, end="", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    status = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        try:
            status = process.wait(limit)
        finally:
            kill_tree(process)
    # What escaped into another session could hold the pipe open; it is not waited for.
    reader.join(5)
    return Ended(status, monotonic() - begin, lines)
