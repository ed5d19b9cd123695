"""The processes of a command, and what is left of them when it is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil

from tests.command import Regrow


class Family:
    """The processes of a command, remembered before it is killed."""

    def __init__(self, command: Regrow):
        self.command = command
        self.processes = command.family()

    def named(self, name: str) -> list[psutil.Process]:
        """Those that our own launch called ``name``: regrow-agent, regrow-rank-0, ..."""
        return [process for process in self.processes if process.name() == name]

    def kill(self, processes: list[psutil.Process], number: int = signal.SIGKILL) -> None:
        for process in processes:
            process.send_signal(number)


#: Processes of a killed run are gone within a second on an idle machine; a busy one has this long.
PATIENCE = 20


def left(family: Family, folder: Path, seconds: float = PATIENCE) -> list[str]:
    """What is left of the run after at most ``seconds``: by the pids known, and by anything that names its folder."""
    end = time.monotonic() + seconds
    while True:
        known = [
            process for process in family.processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        ]
        named = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(folder) in " ".join(process.info["cmdline"] or [])
        ]
        if not (known or named) or time.monotonic() > end:
            return sorted({str(process) for process in (*known, *named)})
        time.sleep(0.05)
