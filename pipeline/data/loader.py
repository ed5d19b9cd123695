"""The loader: one process's share of the canonical rows, read ahead by worker processes.

Rank r of W takes the rows r, r + W, r + 2W, ... in order. Worker w of NW takes every NW-th of those; since W x NW
divides the number of lanes, each lane is read by one worker alone, and torch's in-order round-robin over the workers
gives the rows back in canonical order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.data.lanes import Cursor, Lane, Row
from pipeline.data.shards import Shard
from pipeline.run import RegrowError


def fitting_workers(wanted: int, lanes: int, world: int) -> int:
    """The largest number of workers, at most ``wanted``, that divides the lanes among ``world`` processes.

    Raises RegrowError when the lanes do not even divide by the processes.
    """
    if lanes % world:
        raise RegrowError(f"data.lanes {lanes} does not divide by {world} processes; lanes are fixed for a run's life")
    return next(number for number in range(wanted, -1, -1) if number == 0 or lanes % (world * number) == 0)


class RowStream(IterableDataset):
    """The rows of one rank from row ``start`` of the run on, without end."""

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        encode: Callable[[str], list[int]],
        lanes: int,
        row_length: int,
        seed: int,
        cache: Path,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        cursors: Mapping[int, Cursor] | None = None,
    ):
        super().__init__()
        self.lane_arguments = {"lanes": lanes, "shards": shards, "encode": encode, "row_length": row_length,
                               "seed": seed, "cache": cache}  # fmt: skip
        self.lanes = lanes
        self.rank = rank
        self.world = world
        self.start = start
        self.cursors = dict(cursors or {})

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        own, step = (worker.id, worker.num_workers) if worker else (0, 1)
        open_lanes: dict[int, Lane] = {}
        # start is a multiple of the world: the first row of this rank is start + rank, and worker 0 hands it out.
        index = self.start + self.rank + self.world * own
        while True:
            number = index % self.lanes
            if number not in open_lanes:
                cursor = self.cursors.get(number, Cursor())
                open_lanes[number] = Lane(number, cursor=cursor, **self.lane_arguments)
            ids, cursor = next(open_lanes[number])
            yield Row(index, ids, number, cursor)
            index += self.world * step


def load_rows(stream: RowStream, workers: int, die_with_parent: Callable[[], None]) -> Iterator[Row]:
    """The stream's rows through ``workers`` processes (0: in this one); a worker's death is an error here.

    ``die_with_parent`` runs in each worker first, so that none outlives its rank.
    """
    if workers == 0:
        yield from stream
        return

    def start_worker(number: int) -> None:
        die_with_parent()

    # A generator of its own: the loader would draw its workers' seed from training's random state, once more after
    # every resume.
    loader = DataLoader(
        stream, batch_size=None, num_workers=workers, worker_init_fn=start_worker, prefetch_factor=8,
        generator=torch.Generator(),
    )  # fmt: skip
    try:
        yield from loader
    except RegrowError as error:
        # torch puts the worker's whole traceback into the message.
        raise RegrowError(str(error).rpartition("RegrowError: ")[2].strip()) from None
