"""Signs of life: a long work says that it goes on, once it takes long, and then from time to time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

#: Seconds of silence before the first line, and between lines.
FIRST, BETWEEN = 20, 60

Say = Callable[[str], None]


@contextlib.contextmanager
def signs_of_life(say: Say, line: Callable[[float], str]) -> Iterator[Callable[[], None]]:
    """Within the context ``say`` is told, from a thread of its own, ``line`` of the seconds since it was entered, once
    they are many, and then from time to time. Gives a function that begins to count anew."""
    ended = threading.Event()
    begin = time.monotonic()

    def begin_anew() -> None:
        nonlocal begin
        begin = time.monotonic()

    def watch() -> None:
        of, due = begin, begin + FIRST
        while not ended.wait(max(0.0, due - time.monotonic())):
            if begin != of:
                of, due = begin, begin + FIRST
                continue
            # The work itself meets a full disk, and says so.
            with contextlib.suppress(OSError):
                say(line(time.monotonic() - begin))
            due += BETWEEN

    watching = threading.Thread(target=watch, name="signs of life", daemon=True)
    watching.start()
    try:
        yield begin_anew
    finally:
        ended.set()
        watching.join()


@contextlib.contextmanager
def telling(say: Say) -> Iterator[Say]:
    """Gives a function to say with instead of ``say``: where nothing new is said for long, it repeats the last line,
    with the seconds since then."""
    lock = threading.Lock()
    last = ""

    def alone(line: str) -> None:
        with lock:
            say(line)

    with signs_of_life(alone, lambda seconds: f"still at it, {seconds:.0f} s after: {last}") as begin_anew:

        def tell(line: str) -> None:
            nonlocal last
            alone(line)
            last = line.partition("\n")[0]
            begin_anew()

        yield tell
