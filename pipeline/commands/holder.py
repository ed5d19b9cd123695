"""Who works in a run, for people who only look: the command's machine and process, and whether it lives."""

from __future__ import annotations

import contextlib
import re
import socket

import psutil

from pipeline.commands.telling import Line, ago
from pipeline.errors import RegrowError
from pipeline.run import Run

#: What a command writes into the lock that it holds.
HELD = re.compile(r"host (?P<host>\S+) pid (?P<pid>\d+)")


def look_at_holder(run: Run) -> tuple[Line, bool]:
    """Who works in the run in words, and whether anybody does.

    The lock is left alone where its text tells enough: it is empty where nobody works, and names a process that is gone
    where one was killed.
    """
    try:
        held = (run.folder / ".lock").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        held = ""
    named = HELD.fullmatch(held)
    if not held:
        return Line("  no command works in it now"), False
    killed = Line(f"  no command works in it now; the last one ({held}) was killed")
    if named and named["host"] == socket.gethostname() and not psutil.pid_exists(int(named["pid"])):
        return killed, False
    try:
        # Of another machine, or of a number that another process may have by now, the lock alone tells.
        holder = run.holder()
    except RegrowError as error:
        return Line(f"  whether a command works in it cannot be told: {error}"), False
    if holder is None:
        return killed, False
    written = ""
    with contextlib.suppress(OSError):
        written = f"; log.txt was written {ago((run.folder / 'log.txt').stat().st_mtime)}"
    return Line(f"  in use by {holder}, which is alive", written), True
