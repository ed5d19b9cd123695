"""The command itself, started as a shell would start it: to be read from, killed and waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

from tests import ROOT


class Regrow:
    """The command in a process group of its own, as a shell would start it."""

    def __init__(self, *arguments: object):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Tests that run in the background have Ctrl-C ignored, and a child would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.output = ""

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end; ``output`` holds all that was printed."""
        out, _ = self.process.communicate(timeout=timeout)
        self.output += out
        return self.process.returncode

    def read_until(self, text: str, timeout: float = 120) -> None:
        """Read the output up to the line that has ``text``; fails when it ends first."""
        begin = time.monotonic()
        while text not in self.output:
            line = self.process.stdout.readline()
            assert line, f"the command ended before it printed {text!r}; it printed:\n{self.output}"
            self.output += line
            assert time.monotonic() - begin < timeout, f"{text!r} not printed in {timeout} s:\n{self.output}"

    def family(self) -> list[psutil.Process]:
        """The command's process and all below it."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the command alone."""
        self.process.send_signal(number)
