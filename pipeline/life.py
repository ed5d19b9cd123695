"""Signs of life: a long work says that it goes on, once it takes long, and then from time to time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Teller:
    """Says a line when it is called. ``at`` takes note of what is at work from then on, until the next line: that is
    said where no line comes for long."""

    say: Say
    at: Say

    def __call__(self, line: str) -> None:
        self.say(line)


@contextlib.contextmanager
def telling(say: Say) -> Iterator[Teller]:
    """Gives a Teller to say with instead of ``say``: where nothing new is said for long, it says what is at work, or
    repeats the last line, with the seconds since then."""
    lock = threading.Lock()
    last = doing = ""

    def alone(line: str) -> None:
        with lock:
            say(line)

    def sign(seconds: float) -> str:
        return f"{doing}, {seconds:.0f} s" if doing else f"still at it, {seconds:.0f} s after: {last or 'its start'}"

    with signs_of_life(alone, sign) as begin_anew:

        def tell(line: str) -> None:
            nonlocal last, doing
            alone(line)
            last, doing = line.partition("\n")[0], ""
            begin_anew()

        def at(what: str) -> None:
            nonlocal doing
            doing = what

        yield Teller(tell, at)
