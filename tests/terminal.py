"""A command on a terminal of its own: a pty, whose output is read to its end."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import termios

from tests import ROOT


def on_terminal(*words: str, columns: int = 80, **environment: str) -> str:
    """All that ``python WORDS`` prints on a terminal so many columns wide; it must end well."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**known, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    printed = b""
    # The end of a terminal that nobody writes to any more is an error to its reader.
    with contextlib.suppress(OSError):
        while piece := os.read(ours, 65536):
            printed += piece
    os.close(ours)
    assert process.wait(60) == 0, printed.decode()
    return printed.decode().replace("\r\n", "\n")
