"""Stopping between steps: all processes agree, one checkpoint stands, and a file says why.

What a process was asked (``pipeline.stopping``) it alone knows. All learn of it in the sum of a step's losses or, where
no step is made, from ``look``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.files import write_json
from pipeline.life import Teller
from pipeline.stopping import DONE, REQUEUE, STOP, STOPPED, why_asked
from pipeline.training.checkpoint import complete_checkpoints, step_of
from pipeline.world import World


class Stopped(Exception):
    """Training is to stop here: raised on every process alike."""


class Stop:
    """The agreement of the processes of ``world`` to stop. ``saved`` is how many seconds the checkpoint took that was
    written for it; None where none was."""

    def __init__(self, world: World):
        self._world = world
        self.saved: float | None = None

    def look(self) -> None:
        """Stopped where one of the processes was asked to stop. Each calls it: one sum of one number on the CPU."""
        if self._world.sum(torch.tensor([why_asked() is not None], dtype=torch.int64)).item():
            raise Stopped


@contextmanager
def stopping(folder: Path, world: World, say: Teller) -> Iterator[Stop]:
    """Within the context training goes to its end, and leaves ``folder``/DONE; or raises Stopped, and leaves REQUEUE.

    REQUEUE holds ``why`` (what was asked, on which rank), ``step`` (of the newest checkpoint; 0 without one), ``date``
    and ``save_seconds`` (None where nothing was to be saved). What an earlier start left of either, and STOP, is taken
    away. SystemExit with status STOPPED, on every process, where it stopped.
    """
    world.on_first(lambda: _clear(folder))
    stop = Stop(world)
    try:
        yield stop
    except Stopped:
        asked = [(rank, why) for rank, why in enumerate(world.gather(why_asked())) if why]
        world.on_first(lambda: _requeue(folder, asked, stop, say))
        raise SystemExit(STOPPED) from None
    world.on_first(lambda: write_json(folder / DONE, {"date": _now()}))


def _clear(folder: Path) -> None:
    for name in (REQUEUE, DONE, STOP):
        (folder / name).unlink(missing_ok=True)


def _requeue(folder: Path, asked: list[tuple[int, str]], stop: Stop, say: Teller) -> None:
    """Write REQUEUE, and say it."""
    why = asked[0][1]
    kept = complete_checkpoints(folder / "checkpoints")
    step = step_of(kept[-1]) if kept else 0
    ranks = ", ".join(str(rank) for rank, _ in asked)
    many = "rank" if len(asked) == 1 else "ranks"
    write_json(
        folder / REQUEUE,
        {"why": f"{why} on {many} {ranks}", "step": step, "date": _now(), "save_seconds": stop.saved},
    )
    (folder / STOP).unlink(missing_ok=True)
    where = (
        f"at step {step} by {why}; checkpoint written" if kept else f"before its first step by {why}; nothing to save"
    )
    say(f"stopped {where}; the same command goes on")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
