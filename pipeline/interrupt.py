"""Interruptions: a signal that asks this process to end is met, even where Python loses what its handler raises.

What a handler raises while Python frees an object, in a ``__del__`` or a callback of the collector, is printed and
dropped ("Exception ignored in ..."): a Ctrl-C at such a moment would be without effect. So the signal is also noted,
and the work asks for it wherever it says something.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: A process has one disposition for each signal, and one note that such a signal came.
_came = threading.Event()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the context SIGINT (Ctrl-C), SIGTERM and SIGHUP raise KeyboardInterrupt, so that everything is tidied up.

    What is ignored stays so: nohup sets it for SIGHUP, for runs that go on after a logout, and a shell for the SIGINT
    of what it starts in the background.
    """
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wanted = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in wanted}
    try:
        yield
    finally:
        _came.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _came.set()
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """KeyboardInterrupt, in the main thread, where a signal has asked this process to end and it still works."""
    if _came.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
