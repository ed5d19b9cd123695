"""Tests whose steps build on each other: one test, each step of it named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A step of a test that stands on those before it: a failure says in which step it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in phase: {name}")
        raise
