"""Own time: what each process itself takes for a step, apart from what it waits for the others.

A step takes as long as the slowest process; the clocks of the others show the same, since they wait for it. So what
passes while gradients are summed over the processes is taken off, and each tells the rest in the sum that a step makes
anyway: 8 bytes for each process.

Under ZeRO 3 the processes also wait for each other wherever a block's weights are gathered, and under ZeRO 2 where a
bucket of gradients is full before a micro-batch ends. That is not taken off: there the slowest stands out less.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from pipeline.training.engine import Engine


@dataclass(frozen=True)
class Slowest:
    """The process that took longest for its own part of a step, and the median of all, in seconds."""

    rank: int
    seconds: float
    median: float

    @classmethod
    def of(cls, seconds: list[float]) -> Slowest:
        """By the seconds of all processes."""
        most = max(seconds)
        return cls(seconds.index(most), most, median(seconds))


class OwnTime:
    """A clock of this process's own work, around an engine whose sums of gradients it takes off."""

    def __init__(self, engine: Engine):
        self._device = engine.world.device
        self._begin = time.perf_counter()
        self._waited = 0.0
        #: Pairs of marks on the GPU's time: what lies between is known when they were passed.
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        inner = engine.engine
        summing = type(inner).allreduce_gradients

        def sum_gradients(*arguments: Any, **named: Any) -> Any:
            with self.waiting():
                return summing(inner, *arguments, **named)

        inner.allreduce_gradients = sum_gradients

    def begin(self) -> None:
        """Count from here."""
        self._begin, self._waited = time.perf_counter(), 0.0
        self._marks.clear()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What passes within the context is not this process's own."""
        if self._device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._marks.append((first, last))
            return
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def seconds(self) -> float:
        """Own seconds since ``begin``; on a GPU asked for when it has done all that it was given."""
        marked = sum(first.elapsed_time(last) for first, last in self._marks) / 1000
        return time.perf_counter() - self._begin - self._waited - marked
