"""Requests to stop a stage that can be stopped without loss: from signals, by the clock, and through a file."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.config import Config
from pipeline.run import Run
from pipeline.stopping import STOP, STOPPABLE, STOPPED, nothing_more, noting, other_requests, why_asked
from pipeline.world import World


@contextmanager
def requests_noted(stage: str, config: Config, run: Run, world: World) -> Iterator[None]:
    """Within the context what asks this process to stop is noted, where ``stage`` looks for it; else signals end it as
    they did. Every process of ``world`` enters it."""
    if stage not in STOPPABLE:
        yield
        return
    here = (socket.gethostname(), os.getpid())
    peers = [pid for host, pid in world.gather(here) if host == here[0] and pid != here[1]]
    # The clock and the file are the first process's: others may see them later.
    look = other_requests(config.train.max_hours, run.stage(stage) / STOP) if world.rank == 0 else nothing_more
    with noting(look, peers):
        yield


def stop_before_next(stage: str, stages: Sequence[str], world: World) -> None:
    """Behind ``stage`` of ``stages``, which is done: SystemExit with status STOPPED, on every process, where one was
    asked to stop, and there is more to do."""
    if stage not in STOPPABLE or stage == stages[-1]:
        return
    if any(world.gather(why_asked() is not None)):
        if world.rank == 0:
            print(f"regrow: stopped behind stage {stage}, which is done; the same command goes on", flush=True)
        raise SystemExit(STOPPED)
