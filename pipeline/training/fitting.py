"""How many rows fit: the largest micro-batch that leaves room on the device, by the memory plan and then by trying.

More rows in a micro-batch are larger products and fewer sums of gradients: between 2 and 8 rows of 2,048 tokens lie
some twelve hundredths of an H200's speed. What fits once is kept with the run: another micro-batch rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from pipeline.errors import RegrowError
from pipeline.files import of_bytes, read_json, write_json
from pipeline.model.costs import Checkpointing, Trained, memory_per_gpu

#: Of the device's memory a plan may fill so much: the rest is CUDA's context, buckets and fragments.
SHARE = 0.9
#: Rows of a micro-batch beyond which nothing is gained: products are as large as the chip can use.
MOST = 16
#: What ``auto`` means where nothing is tried, on a CPU.
PLAIN = 2


@dataclass(frozen=True)
class Fit:
    """Rows in one forward of one process, and what of the activations is computed a second time."""

    micro_batch: int
    gradient_checkpointing: Checkpointing


@dataclass(frozen=True)
class ToFit:
    """What is to fit: a model as it is trained, at a ZeRO stage on so many processes, rows of one length, as many of
    them in a global batch, the least that is to be computed a second time, and a teacher's bytes beside it."""

    trained: Trained
    zero_stage: int
    processes: int
    row_length: int
    global_batch: int
    gradient_checkpointing: Checkpointing = "none"
    teacher: int = 0

    def divisors(self) -> list[int]:
        """Micro-batches that divide the rows of one process, the largest first; RegrowError where rows do not divide
        among the processes."""
        if self.global_batch % self.processes:
            raise RegrowError(
                f"a global batch of {self.global_batch} rows does not divide among {self.processes} processes; set "
                "train.global_batch to a multiple of them"
            )
        rows = self.global_batch // self.processes
        return [count for count in range(min(rows, MOST), 0, -1) if rows % count == 0]

    def needs(self, fit: Fit) -> int:
        """Bytes that the memory plan gives to one GPU."""
        return (
            self.teacher
            + memory_per_gpu(
                self.trained,
                self.zero_stage,
                self.processes,
                fit.micro_batch,
                self.row_length,
                gradient_checkpointing=fit.gradient_checkpointing,
            )["total"]
        )

    def fits(self, capacity: float) -> Iterator[Fit]:
        """What is planned to fit into a GPU of ``capacity`` bytes, the best first: no more is computed a second time
        than must be, and then the more rows the better."""
        kinds = get_args(Checkpointing)
        for kind in kinds[kinds.index(self.gradient_checkpointing) :]:
            for count in self.divisors():
                if self.needs(fit := Fit(count, kind)) <= SHARE * capacity:
                    yield fit


def plain_fit(wanted: ToFit) -> Fit:
    """Two rows, or as many as divide: where nothing is tried."""
    return Fit(next(count for count in wanted.divisors() if count <= PLAIN), wanted.gradient_checkpointing)


def first_that_fits(
    fits: Iterable[Fit], attempt: Callable[[Fit], None], say: Callable[[str], None], capacity: float
) -> Fit:
    """The first with which ``attempt``, a forward and a backward, does not run out of the device's memory.

    Every process tries the same, and runs out together: their shapes are the same. RegrowError where none fits.
    """
    for fit in fits:
        try:
            attempt(fit)
        except torch.OutOfMemoryError:
            say(f"micro-batch {fit.micro_batch}, recomputing {fit.gradient_checkpointing}: does not fit")
            continue
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return fit
    raise RegrowError(
        f"train.micro_batch auto: not one row fits into {of_bytes(int(capacity))}, even if whole blocks are computed a "
        "second time; raise train.zero_stage, or train on more GPUs"
    )


def kept_fit(folder: Path, asked: Mapping[str, Any]) -> Fit | None:
    """What an earlier start of this run has found to fit, if that was asked the same; None where it was not, or nothing
    was found. RegrowError where the file is not as it was written."""
    path = folder / "fit.json"
    if not path.exists():
        return None
    kept = read_json(path)
    try:
        rows, kind = kept["micro_batch"], kept["gradient_checkpointing"]
        whole = isinstance(rows, int) and 0 < rows <= MOST and kind in get_args(Checkpointing)
        same = kept["asked"] == asked
    except (KeyError, TypeError):
        whole = same = False
    if not whole:
        raise RegrowError(f"{path}: not as a run writes it; delete it, and what fits is found again")
    return Fit(rows, kind) if same else None


def keep_fit(folder: Path, fit: Fit, asked: Mapping[str, Any]) -> None:
    """For later starts of this run. ``asked``: all that the fit was found for."""
    write_json(folder / "fit.json", {**asdict(fit), "asked": dict(asked)})
