"""The loader: one process's share of the canonical rows, read ahead by worker processes.

Rank r of W takes the rows r, r + W, r + 2W, ... in order. Worker w of NW takes every NW-th of those; since W x NW
divides the number of lanes, each lane is read by one worker alone, and torch's in-order round-robin over the workers
gives the rows back in canonical order.
"""

from __future__ import annotations

import os
import re
import resource
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.data.shards import Shard
from pipeline.data.stream.lanes import Lane, Mixture, draw_source
from pipeline.data.stream.packing import Row
from pipeline.data.stream.parts import shuffle
from pipeline.data.stream.position import LaneCursor
from pipeline.data.stream.strands import Reading
from pipeline.errors import RegrowError

#: How torch says that a worker is gone; its own errors come out of the loader as what they are.
GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
#: Files that a lane has open for each source (a shard, its lock, two maps of a tokenised one), and those beside them.
FILES, OTHER_FILES = 4, 256
#: Seconds that a worker goes on, fetching a shard say, when nobody wants rows any more.
LAST = 2.0


def fitting_workers(wanted: int, lanes: int, processes: int) -> int:
    """The largest number of workers, at most ``wanted``, that divides the lanes among ``processes``.

    Raises RegrowError when the lanes do not even divide by the processes.
    """
    if lanes % processes:
        raise RegrowError(
            f"data.lanes {lanes} does not divide by {processes} processes; lanes are fixed for a run's life"
        )
    return next(number for number in range(wanted, -1, -1) if number == 0 or lanes % (processes * number) == 0)


@dataclass(frozen=True)
class Place:
    """Where a row ends: the source (its number in the config), the shard, the document in it and the epoch; and how
    many ``documents`` it holds."""

    source: int
    shard: str
    document: int
    epoch: int
    documents: int


class RowStream(IterableDataset):
    """The rows of one rank of so many ``processes`` from row ``start`` of the run on, without end.

    ``weights`` are relative, one for each source (None: all alike). ``cursors`` are those behind row ``start - 1``,
    and lanes without one begin at their beginning.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        reading: Reading,
        *,
        lanes: int,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        processes: int = 1,
        start: int = 0,
        cursors: Mapping[int, LaneCursor] | None = None,
    ):
        super().__init__()
        fitting_workers(0, lanes, processes)
        self.reading = reading
        self.mixture = Mixture.of(shards, lanes, weights, reading)
        self.lanes = lanes
        self.rank = rank
        self.processes = processes
        self.start = start
        self.cursors = dict(cursors or {})

    def __iter__(self) -> Iterator[Row | RegrowError]:
        """The rows; inside a worker also, at last, the error that ended them: torch would wrap it in a traceback."""
        worker = get_worker_info()
        if worker is None:
            yield from self.rows_of(0, 1)
            return
        try:
            yield from self.rows_of(worker.id, worker.num_workers)
        except RegrowError as error:
            yield error

    def rows_of(self, worker: int, workers: int) -> Iterator[Row]:
        """The rows of this rank that worker number ``worker`` of ``workers`` reads, without end."""
        step = self.processes * workers
        if self.lanes % step:
            raise RegrowError(
                f"{workers} workers in each of {self.processes} processes do not divide {self.lanes} lanes, so that "
                "two of them would read one lane; take as many as fitting_workers gives"
            )
        _allow_open_files(FILES * self.lanes // step * len(self.mixture.sources) + OTHER_FILES)
        # Rows are dealt from ``start`` on, so the first worker of the first rank hands out the first row.
        index = self.start + self.rank + self.processes * worker
        # The lanes of the worker's next rows, all of them, so that their first parts are fetched side by side.
        own = {
            first % self.lanes: Lane(
                first % self.lanes,
                self.mixture,
                self.reading,
                row=first // self.lanes,
                cursor=self.cursors.get(first % self.lanes),
            )
            for first in range(index, index + self.lanes, step)
        }
        masked = any(dealt.of_examples for dealt in self.mixture.sources)
        while True:
            number = index % self.lanes
            ids, cu_seqlens, cursor, counted = next(own[number])
            if counted is None and masked:
                counted = np.ones(len(ids), dtype=bool)
            yield Row(index, ids, number, cursor, cu_seqlens, counted)
            index += step

    def place_of(self, row: Row) -> str:
        """Where a row of this stream ends, for people: the shard, the document in it, and the epoch."""
        end = self.end_of(row)
        return f"{end.shard}, document {end.document}, epoch {end.epoch}"

    def end_of(self, row: Row) -> Place:
        """Where a row of this stream ends, and how many documents it holds, the first and the last of them in part."""
        seed = self.reading.seed
        source = draw_source(seed, row.lane, row.index // self.lanes, self.mixture.edges)
        dealt, cursor = self.mixture.sources[source], row.cursor.cursors[source]
        part = shuffle(dealt.parts[row.lane :: self.lanes], seed, row.lane, cursor.epoch, *dealt.names)[cursor.part]
        held = len(row.cu_seqlens) - 1
        return Place(source, dealt.shards[part.shard].name, cursor.document, cursor.epoch, held)


def load_rows(stream: RowStream, workers: int, begin: Callable[[], None]) -> Iterator[Row]:
    """The stream's rows through ``workers`` processes (0: in this one); a worker's death is an error here.

    ``begin`` runs in each worker first: it sees to it that none outlives its rank. Raises RegrowError, what a worker
    raised or naming the process that was killed.
    """
    if workers == 0:
        yield from stream
        return
    # A byte in it says that all is over. A lock or an event would be held for ever by a worker that was killed at it.
    over, says_over = os.pipe()
    # A generator of its own: the loader would draw its workers' seed from training's random state, once more after
    # every resume. Pages are locked by the training loop, for a whole micro-batch: torch's thread for it can wait for
    # ever for the rest of a dead worker's message.
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=partial(_begin, begin, over),
        prefetch_factor=8,
        generator=torch.Generator(),
    )
    try:
        for row in loader:
            if isinstance(row, RegrowError):
                raise row
            try:
                yield row
            except GeneratorExit:
                os.write(says_over, b"\0")
                raise
    except RuntimeError as error:
        words = killed_worker(error, stream.rank)
        if words is None:
            raise
        raise RegrowError(words) from None
    finally:
        os.close(over)
        os.close(says_over)


def killed_worker(error: Exception, rank: int) -> str | None:
    """What to say of an ``error`` of torch's that a worker of a rank was killed; None for another. It is raised where
    rows are asked for, or wherever the process is when the kernel tells it of a child's end."""
    gone = GONE.search(str(error)) if isinstance(error, RuntimeError) else None
    if gone is None:
        return None
    return (
        f"a data worker of rank {rank} was killed (pid {gone[1].strip()}). The kernel does that when memory runs out "
        "(see dmesg): lower data.workers or free memory. The same command goes on at the last checkpoint"
    )


def _begin(begin: Callable[[], None], over: int, number: int) -> None:
    begin()
    threading.Thread(target=_leave, args=(over,), name="rows are wanted", daemon=True).start()


def _leave(over: int) -> None:
    """End this worker when it is over: before torch sends it SIGTERM, which a rank takes for a request to stop."""
    # The byte stays where it is, for the others.
    select.select([over], [], [])
    time.sleep(LAST)
    os._exit(0)


def _allow_open_files(needed: int) -> None:
    """Every lane keeps its shards open: raise this process's limit, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
