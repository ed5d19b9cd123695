"""Bars of a library call: how far it is, on a terminal or in a notebook."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")

#: Whether what is ``shown`` has a bar: a call of the library turns it on for what it calls, and stages never do.
_ON: ContextVar[bool] = ContextVar("bars", default=False)


@contextlib.contextmanager
def bars(wanted: bool) -> Iterator[None]:
    """Within the context what is ``shown`` has a bar, where it is ``wanted`` and somebody can see it."""
    before = _ON.set(wanted and _seen())
    try:
        yield
    finally:
        _ON.reset(before)


def shown(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, one after the other, with a bar that says ``what`` is done; it is gone when all are."""
    with ticking(len(items), what) as tick:
        for item in items:
            yield item
            tick()


@contextlib.contextmanager
def ticking(total: int, what: str) -> Iterator[Callable[[], object]]:
    """A bar of ``total`` steps, which goes on by one at each call of what is given."""
    if not _ON.get():
        yield lambda: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, unit="batch", leave=False) as bar:
        yield bar.update


def _seen() -> bool:
    """A kernel's streams say that they are no terminal, and show bars all the same."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
