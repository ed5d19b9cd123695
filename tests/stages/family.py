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

    def with_words(self, *words: str) -> list[psutil.Process]:
        """Those whose command line has all of ``words``, in the order of their pids."""
        lines = {process: " ".join(process.cmdline()) for process in self.processes if process.is_running()}
        found = [process for process, line in lines.items() if all(word in line for word in words)]
        return sorted(found, key=lambda process: process.pid)

    def ranks(self) -> list[psutil.Process]:
        """The processes that a launcher gave a rank."""
        return [process for process in self.processes if "RANK" in process.environ()]

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
