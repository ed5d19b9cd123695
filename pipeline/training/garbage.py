"""Python's garbage collector, kept from stopping a process in the middle of a step.

It starts by a count of objects, which differs by process: with thousands of processes one of them is always at it, and
all wait for that one. In the loop it runs at the same steps everywhere, and passes over what was there before.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

#: Steps from one collection to the next.
EVERY = 50


@contextlib.contextmanager
def collected_between_steps() -> Iterator[Callable[[int], None]]:
    """Within the context nothing is collected but by the function that it gives, behind every EVERY-th step."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()

    def behind(step: int) -> None:
        if step % EVERY == 0:
            gc.collect()

    try:
        yield behind
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
