"""The training loop: from rows to updates, readable from top to bottom.

A step takes the rows of one global batch, counts its target tokens over all processes, accumulates gradients of the
sum of token losses divided by that count, and updates once. Splitting the same batch otherwise (micro-batch,
accumulation, processes) changes rounding only. What happens between steps (log, evaluate, checkpoint, export) is
decided by the step number alone, so that a resumed run does the same as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import LaneCursor
from pipeline.errors import RegrowError
from pipeline.model.loss import document_targets
from pipeline.training.engine import Engine


@dataclass(frozen=True)
class Step:
    """What one update did. ``loss`` is nats per target token of the global batch; times are in seconds.

    ``auxiliary_loss`` is the router's, before its coefficient, None where none is trained on. ``seconds`` run from the
    end of the step before, or from the loop's begin, to the end of this one: with them ``tokens_per_second`` counts
    what was done between the steps too (evaluations, checkpoints, exports). ``data_wait`` is the part of them that the
    rows were waited for.
    """

    step: int
    tokens: int
    loss: float
    auxiliary_loss: float | None
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    data_wait: float


@dataclass
class Position:
    """Where a run stands: updates done, tokens seen, and each own lane's cursor behind the rows consumed."""

    step: int = 0
    tokens: int = 0
    cursors: dict[int, LaneCursor] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A row that was trained on: its number, its lane, and the first 16 hex digits of its ids' sha256 (int64)."""

    index: int
    lane: int
    sha256: str

    @classmethod
    def of(cls, row: Row) -> Sample:
        """The sample that a row is."""
        return cls(row.index, row.lane, hashlib.sha256(row.input_ids.tobytes()).hexdigest()[:16])


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together: their ids (rows, T) int64, in page-locked memory where a GPU fetches
    them while it computes, and where documents begin in each, None where a row is one text."""

    rows: list[Row]
    ids: torch.Tensor
    documents: list[np.ndarray] | None

    @classmethod
    def of(cls, rows: list[Row], device: torch.device, within_documents: bool) -> MicroBatch:
        """The micro-batch of rows of one length."""
        ids = torch.from_numpy(np.stack([row.input_ids for row in rows]))
        documents = [row.cu_seqlens for row in rows] if within_documents else None
        return cls(rows, ids.pin_memory() if device.type == "cuda" else ids, documents)

    @property
    def targets(self) -> int:
        """Target tokens: all but the first of each row, or of each document in it."""
        if self.documents is None:
            return self.ids[:, 1:].numel()
        return int(document_targets(self.documents, self.ids.shape[1]).sum())


def train_steps(
    engine: Engine,
    rows: Iterator[Row],
    position: Position,
    *,
    steps: int,
    rate: Callable[[int], float],
    within_documents: bool = False,
    on_samples: Callable[[int, list[Sample]], None] | None = None,
    at: Callable[[str], None] = lambda what: None,
) -> Iterator[Step]:
    """Train from ``position`` to ``steps``, yielding after each update; ``position`` is kept up to date.

    ``rows`` gives this process's rows in order; ``rate`` the learning rate of a step from 0 on. ``within_documents``:
    each document of a row is read alone. ``on_samples`` is told after each update, on every process, the step's number
    and this process's rows in the order in which they were taken. ``at`` is told, before each micro-batch is read
    and computed, which of a step is at work.

    Raises RegrowError, on every process, on a global batch without a single target token, and on a loss or a gradient
    norm that is not finite: before weights, moments, ``position`` or anything that is written have moved.
    """
    ended = time.perf_counter()
    while position.step < steps:
        begin = time.perf_counter()
        batch = _read(engine, rows, within_documents, _noting(at, engine, position, "reading"))
        data_wait = time.perf_counter() - begin
        targets, tokens = _count(engine, batch, position.step)
        learning_rate = rate(position.step)
        engine.set_learning_rate(learning_rate)
        loss, auxiliary = _update(engine, batch, targets, position.step, _noting(at, engine, position, "computing"))
        norm = engine.gradient_norm()
        _require_finite("gradient norm", norm, position.step, batch)

        position.step += 1
        position.tokens += tokens
        position.cursors.update({row.lane: row.cursor for micro in batch for row in micro.rows})
        if on_samples is not None:
            on_samples(position.step, [Sample.of(row) for micro in batch for row in micro.rows])
        # Here the device has done all that was asked of it: the norm was waited for.
        before, ended = ended, time.perf_counter()
        yield Step(
            step=position.step,
            tokens=position.tokens,
            loss=loss,
            auxiliary_loss=None if engine.router_coefficient is None else auxiliary,
            grad_norm=norm,
            learning_rate=learning_rate,
            tokens_per_second=tokens / (ended - before),
            seconds=ended - before,
            data_wait=data_wait,
        )


def _noting(at: Callable[[str], None], engine: Engine, position: Position, doing: str) -> Callable[[int], None]:
    """Notes, by its number, which micro-batch of the next step is at work."""
    step = position.step + 1
    return lambda number: at(f"step {step}: {doing} micro-batch {number} of {engine.accumulation}")


def _read(engine: Engine, rows: Iterator[Row], within_documents: bool, note: Callable[[int], None]) -> list[MicroBatch]:
    """This process's part of a global batch."""
    taken = []
    for number in range(1, engine.accumulation + 1):
        note(number)
        taken.append([next(rows) for _ in range(engine.micro_batch)])
    return [MicroBatch.of(micro, engine.world.device, within_documents) for micro in taken]


def _count(engine: Engine, batch: list[MicroBatch], step: int) -> tuple[int, int]:
    """(target tokens, tokens) of the global batch. RegrowError where there is not one target.

    The number of targets differs by row within documents, and by process: the loss is over those of all.
    """
    counts = torch.tensor([sum(micro.targets for micro in batch), sum(micro.ids.numel() for micro in batch)])
    targets, tokens = engine.world.sum(counts).tolist()
    if targets == 0:
        raise RegrowError(
            f"training step {step + 1}: no document of the batch has a second token in its row, so that there is "
            "nothing to predict; use data.attention across, or longer documents"
        )
    return targets, tokens


def _update(
    engine: Engine, batch: list[MicroBatch], targets: int, step: int, note: Callable[[int], None]
) -> tuple[float, float]:
    """Gradients of the global batch and, where its loss is finite, one update. Returns the loss in nats per target
    token, and the mean of the router's auxiliary loss, over all processes."""
    world = engine.world
    # Summed on the device: one wait for them in a step, not one in each micro-batch.
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    loss = auxiliary = math.nan
    for number, micro in enumerate(batch, start=1):
        note(number)
        ids = micro.ids.to(world.device, non_blocking=True)
        sums += engine.backward(ids, targets, micro.documents).double()
        if number == len(batch):
            tokens_loss, auxiliary = world.sum(sums.cpu()).tolist()
            loss, auxiliary = tokens_loss / targets, auxiliary / (engine.accumulation * world.size)
            _require_finite("loss", loss + auxiliary, step, batch)
        engine.step()
    return loss, auxiliary


def _require_finite(what: str, value: float, step: int, batch: list[MicroBatch]) -> None:
    """RegrowError where a sum over all processes, hence on all of them, is not finite in the step behind ``step``.

    Whether it was NaN or infinite is not said: ZeRO 1 to 3 report the norm of either as infinite.
    """
    if not math.isfinite(value):
        first, last = batch[0].rows[0].index, batch[-1].rows[-1].index
        raise RegrowError(
            f"training step {step + 1}: the {what} is not finite; the update was not made, and the weights are as step "
            f"{step} left them. Look at rows {first} to {last} of this process. The same command goes on from the last "
            "checkpoint; where it ends here again, train anew with a lower train.learning_rate and --redo train"
        )
