"""The watchdog: a process whose training stands still says where, leaves the stacks of its threads, and ends.

In a step no sign of progress for ``train.hang_seconds`` is a hang. Whatever else training does (its first step, in
which kernels are compiled; evaluations, checkpoints, exports, in which rank 0 may work alone) has hours. It looks from
a thread of its own, and has one of the C library's behind it for the case that Python's threads do not get their turn.

At any time SIGUSR2 has a process leave the stacks of its threads, and go on, also inside a collective.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from pipeline.launch import AGENT, TOLD, report_to_launcher

#: Seconds for what is not a step behind the first.
LONG = 2 * 3600.0
#: Seconds behind the limit after which the process is ended without Python.
STARVED = 60
#: At most so many seconds between looks.
LOOK = 5.0


class Watchdog:
    """Watches this process, number ``rank``, within its context; stacks go to ``folder``/stacks/rank-RANK.txt, and
    ``note`` is told why it ends the process.

    It waits without a limit until ``beat`` is called first.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        seconds: float,
        long: float = LONG,
        note: Callable[[str], None] = lambda message: None,
    ):
        self._note = note
        self._path, self._rank = folder / "stacks" / f"rank-{rank}.txt", rank
        self._seconds, self._long = seconds, long
        self._stepped = False
        self._sign: tuple[float, float, str] | None = None
        self._ended = threading.Event()
        self._main = threading.main_thread().ident
        self._file: IO[str] = sys.stderr

    def __enter__(self) -> Watchdog:
        # Open from now on: a full disk, or one that is gone, must not hide a hang.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        faulthandler.register(signal.SIGUSR2, file=self._file)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(signal.SIGUSR2)
        if self._file is not sys.stderr:
            self._file.close()
            with contextlib.suppress(OSError):
                if self._path.stat().st_size == 0:
                    self._path.unlink()
                    self._path.parent.rmdir()

    def beat(self, what: str) -> None:
        """A step goes on: ``what`` is at work in it."""
        self._sign = (time.monotonic(), self._seconds if self._stepped else self._long, what)

    def between_steps(self, what: str) -> None:
        """A step is done; until the next ``beat`` there are hours."""
        self._stepped = True
        self._sign = (time.monotonic(), self._long, what)

    def _watch(self) -> None:
        look = min(LOOK, self._seconds / 4)
        while not self._ended.wait(look):
            if self._sign is None:
                continue
            begin, limit, what = self._sign
            faulthandler.dump_traceback_later(limit + STARVED, exit=True, file=self._file)
            if time.monotonic() - begin > limit:
                self._end(limit, what)

    def _end(self, limit: float, what: str) -> None:
        """Leave the stacks, say it in one line, and end the process: its main thread cannot."""
        faulthandler.dump_traceback(file=self._file)
        # What follows has its time, and no more.
        faulthandler.dump_traceback_later(STARVED, exit=True, file=self._file)
        frame = sys._current_frames().get(self._main or 0)
        message = (
            f"no progress for {limit:.0f} s (train.hang_seconds) at: {what}; it stands in {_where(frame)}. The stacks "
            f"of its threads are in {self._path}. The same command goes on from the last checkpoint"
        )
        print(f"regrow (rank {self._rank}): {message}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            self._note(message)
        report_to_launcher(message)
        _leave_flight_record(self._path.with_suffix(".nccl"))
        os._exit(TOLD if AGENT in os.environ else 1)


def _where(frame: FrameType | None) -> str:
    """The innermost of regrow's own functions that a thread is in, with the line."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("pipeline."):
            return f"{module}.{frame.f_code.co_name}, line {frame.f_lineno}"
        frame = frame.f_back
    return "no function of regrow"


def _leave_flight_record(path: Path) -> None:
    """What NCCL's flight recorder holds of the last collectives, where there is one; for torch's fr_trace."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        dump = getattr(torch._C._distributed_c10d, "_dump_nccl_trace", None)
        with contextlib.suppress(OSError, RuntimeError, TypeError):
            path.write_bytes(dump())
