"""Requests to stop: a signal is noted at once, whatever this process is doing, and met where its work can be left.

A process that waits inside a collective runs no Python in its main thread, and a handler of Python's runs there alone.
So the handler of Python's own, in C, writes the signal's number into a pipe, and a thread reads it there. The work asks
where it can stop; a second signal makes the thread end the process, wherever its main thread stands.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil

#: Signals that are noted.
NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
#: Stages that stop where nothing is lost when they are asked to; a signal ends the others at once.
STOPPABLE = ("train",)
#: In a stage's folder: a file by which it is asked to stop where no signal comes through.
STOP = "STOP"
#: Files there that say how its last start ended: it stopped and wants to be started again; it is done.
REQUEUE, DONE = "REQUEUE", "DONE"
#: Exit status of a command or a rank that stopped so: sysexits' EX_TEMPFAIL, "try again later".
STOPPED = 75
#: A signal so many seconds behind the first, or later, is a second one. One request comes several times: from whoever
#: asks, to all processes of a job, and once more from the launcher that hands it on.
AGAIN = 3.0
#: Seconds between looks for what comes by no signal.
LOOK = 1.0
#: Seconds that a process which was asked to stop goes on when another of the same work has ended on its machine.
ALONE = 20.0


class _Requests:
    """What a process has been asked: ``why`` names the first request, and ``since`` is its time (time.monotonic)."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.since = 0.0
        # Where readers, which are forks, write; None while signals are not noted.
        self.from_readers: socket.socket | None = None

    def note(self, why: str) -> None:
        if self.why is None:
            self.why, self.since = why, time.monotonic()


#: A process has one disposition for each signal.
_requests = _Requests()


def why_asked() -> str | None:
    """What asked this process to stop: a signal's name or another word; None where nothing did."""
    return _requests.why


def is_again(since: float | None) -> bool:
    """Whether a signal that comes now is a second one, behind the first at ``since`` (time.monotonic; None: none)."""
    return since is not None and time.monotonic() - since >= AGAIN


def nothing_more() -> str | None:
    """No other source of requests than signals."""
    return None


@contextlib.contextmanager
def noting(look: Callable[[], str | None] = nothing_more, peers: Sequence[int] = ()) -> Iterator[None]:
    """Within the context signals are noted for ``why_asked``; the second ends the process, with status 128 + number.

    What is ignored stays so. ``look`` is asked every second, in a thread, and gives what else asks for a stop.
    ``peers`` are the pids of this machine's other processes of the same work: where one has ended without this one,
    which may wait for it for ever, a process that was asked to stop ends too. What was noted can be asked for after the
    context.
    """
    wanted = [number for number in NOTED if signal.getsignal(number) != signal.SIG_IGN]
    own, ours = socket.socketpair()
    readers, theirs = socket.socketpair()
    for end in (own, ours, readers, theirs):
        end.setblocking(False)
    _requests.why, _requests.from_readers = None, theirs
    ended = threading.Event()
    watching = threading.Thread(
        target=_watch, args=(own, readers, ended, look, _processes(peers)), name="requests to stop", daemon=True
    )
    # The pipe first: a signal that finds the handler alone would be lost.
    before_pipe = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _noted_elsewhere) for number in wanted}
    for number in wanted:
        # What waits in the system goes on waiting.
        signal.siginterrupt(number, False)
    watching.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_pipe)
        _requests.from_readers = None
        ended.set()
        ours.send(b"\0")
        watching.join()
        for end in (own, ours, readers, theirs):
            end.close()


@contextlib.contextmanager
def handing_on(to: Callable[[], Iterable[int]]) -> Iterator[list[int]]:
    """Within the context the first signal is handed on, once, to the processes ``to()``, and this one goes on; the
    second does what it did before. Gives the numbers that were handed on: one, or none.

    A SIGHUP is handed on as SIGTERM. In another thread than the main one nothing is handed on.
    """
    handed: list[int] = []
    since: float | None = None

    def hand(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if is_again(since):
            signal.signal(number, before[number])
            signal.raise_signal(number)
        elif since is None:
            since = time.monotonic()
            handed.append(signal.SIGTERM if number == signal.SIGHUP else number)
            for pid in list(to()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, handed[0])

    main = threading.current_thread() is threading.main_thread()
    wanted = [number for number in NOTED if main and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in wanted}
    for number in wanted:
        signal.signal(number, hand)
    try:
        yield handed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hand_on_to_rank() -> None:
    """In a fork of a process that notes signals: those that come here are noted there, and this one goes on.

    They are no second signal there: what is sent to all processes of a job comes to both.
    """
    if _requests.from_readers is None:
        return
    signal.set_wakeup_fd(_requests.from_readers.fileno(), warn_on_full_buffer=False)
    for number in NOTED:
        if signal.getsignal(number) != signal.SIG_IGN:
            # torch has put a handler of its own, which ends a reader, behind Python's back.
            signal.signal(number, _noted_elsewhere)
            signal.siginterrupt(number, False)


def _noted_elsewhere(number: int, frame: FrameType | None) -> None:
    """A handler: without one of Python's, its own in C, which writes into the pipe, is not called."""


def _processes(pids: Sequence[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def _watch(
    own: socket.socket,
    readers: socket.socket,
    ended: threading.Event,
    look: Callable[[], str | None],
    peers: Sequence[psutil.Process],
) -> None:
    """Read what the handlers have written, until ``ended``."""
    alone_since: float | None = None
    while not ended.is_set():
        ready, _, _ = select.select([own, readers], [], [], LOOK)
        for number in own.recv(64) if own in ready else b"":
            # Of a SIGCHLD, say, the number is written too.
            if number in NOTED:
                if _requests.why is not None and is_again(_requests.since):
                    os._exit(128 + number)
                _requests.note(signal.Signals(number).name)
        for number in readers.recv(64) if readers in ready else b"":
            if number in NOTED:
                _requests.note(f"{signal.Signals(number).name} to a reader")
        if _requests.why is None and (why := look()) is not None:
            _requests.note(why)
        if _requests.why is not None and any(map(_has_ended, peers)):
            alone_since = alone_since or time.monotonic()
            if time.monotonic() - alone_since > ALONE:
                os._exit(128 + signal.SIGTERM)


def _has_ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def other_requests(max_hours: float | None, file: Path) -> Callable[[], str | None]:
    """What ``noting`` is to look for: from now on so many hours (None: no end), or a ``file`` that somebody put there
    where no signal comes through; it may hold a word that says why."""
    begin = time.monotonic()

    def look() -> str | None:
        if max_hours is not None and time.monotonic() - begin >= 3600 * max_hours:
            return "train.max_hours"
        try:
            return f"{file.name}: {file.read_text(encoding='utf-8', errors='replace')[:80].strip()}".rstrip(": ")
        except OSError:
            return None

    return look
