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
from typing import Any

import numpy as np
import torch

from pipeline.model.loss import document_targets
from pipeline.run import RegrowError
from pipeline.training.engine import Engine
from pipeline.world import World


@dataclass(frozen=True)
class Step:
    """What one update did. ``loss`` is nats per target token of the global batch; times are in seconds.

    ``auxiliary_loss`` is the router's, before its coefficient, None where none is trained on. ``seconds`` are those of
    the step itself, ``interval`` those since the step before ended, with what was done in between.
    """

    step: int
    tokens: int
    loss: float
    auxiliary_loss: float | None
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    mfu: float | None
    seconds: float
    interval: float
    data_wait: float


@dataclass
class Position:
    """Where a run stands: updates done, tokens seen, and each own lane's cursor behind the rows consumed."""

    step: int = 0
    tokens: int = 0
    cursors: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A row that was trained on: its number, its lane, and the first 16 hex digits of its ids' sha256 (int64)."""

    index: int
    lane: int
    sha256: str


def train_steps(
    engine: Engine,
    rows: Iterator[Any],
    world: World,
    position: Position,
    *,
    steps: int,
    micro_batch: int,
    rate: Callable[[int], float],
    mfu: Callable[[float], float | None],
    within_documents: bool = False,
    on_samples: Callable[[int, list[Sample]], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Step]:
    """Train from ``position`` to ``steps``, yielding after each update; ``position`` is kept up to date.

    ``rows`` gives this process's rows (with ``index``, ``input_ids``, ``cu_seqlens``, ``lane``, ``cursor``) in order;
    ``rate`` the learning rate of a step from 0 on; ``mfu`` the utilisation at a number of tokens a second of all
    processes. ``within_documents``: each document of a row is read alone. ``on_samples`` is told after each update,
    on every process, the step's number and this process's rows in the order in which they were taken. ``say`` is told
    in long steps how far they are.

    Raises RegrowError, on every process, on a global batch without a single target token, and on a loss or a gradient
    norm that is not finite: before weights, moments, ``position`` or anything that is written have moved.
    """
    ended = time.perf_counter()
    while position.step < steps:
        begin = time.perf_counter()
        sign = SignOfLife(say, f"step {position.step + 1}", engine.accumulation, begin)
        taken = []
        for number in range(1, engine.accumulation + 1):
            sign("reading", number)
            taken.append([next(rows) for _ in range(micro_batch)])
        data_wait = time.perf_counter() - begin

        batches = [_stacked(micro, world.device) for micro in taken]
        documents = [[row.cu_seqlens for row in micro] if within_documents else None for micro in taken]
        counts = torch.tensor(
            [
                sum(map(_count_targets, batches, documents)),
                sum(batch.numel() for batch in batches),
            ]
        )
        # The number of targets differs by row within documents, and by process: the loss is over those of all.
        targets, tokens = world.sum(counts).tolist()
        if targets == 0:
            raise RegrowError(
                f"training step {position.step + 1}: no document of the batch has a second token in its row, so that "
                "there is nothing to predict; use data.attention across, or longer documents"
            )

        learning_rate = rate(position.step)
        engine.set_learning_rate(learning_rate)
        # Summed on the device: one wait for them in a step, not one in each micro-batch.
        sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        for number, (batch, starts) in enumerate(zip(batches, documents, strict=True), start=1):
            sign("computing", number)
            sums += engine.backward(batch.to(world.device, non_blocking=True), targets, starts).double()
            if number == len(batches):
                tokens_loss, auxiliary = world.sum(sums.cpu()).tolist()
                loss, auxiliary = tokens_loss / targets, auxiliary / (engine.accumulation * world.size)
                _require_finite("loss", loss + auxiliary, position.step, taken)
            engine.step()
        norm = engine.gradient_norm()
        _require_finite("gradient norm", norm, position.step, taken)

        position.step += 1
        position.tokens += tokens
        position.cursors.update({row.lane: row.cursor for micro in taken for row in micro})
        before, ended = ended, time.perf_counter()
        seconds = ended - begin
        if on_samples is not None:
            on_samples(position.step, [_sample(row) for micro in taken for row in micro])
        yield Step(
            step=position.step,
            tokens=position.tokens,
            loss=loss,
            auxiliary_loss=None if engine.router_coefficient is None else auxiliary,
            grad_norm=norm,
            learning_rate=learning_rate,
            tokens_per_second=tokens / seconds,
            mfu=mfu(tokens / seconds),
            seconds=seconds,
            interval=ended - before,
            data_wait=data_wait,
        )


def _count_targets(batch: torch.Tensor, documents: list[np.ndarray] | None) -> int:
    """Target tokens of a micro-batch (rows, T): all but the first of each row, or of each document in it."""
    if documents is None:
        return batch[:, 1:].numel()
    return int(document_targets(documents, batch.shape[1]).sum())


def _sample(row: Any) -> Sample:
    return Sample(row.index, row.lane, hashlib.sha256(row.input_ids.tobytes()).hexdigest()[:16])


def _stacked(micro: list[Any], device: torch.device) -> torch.Tensor:
    """Ids of a micro-batch (rows, T) int64; in page-locked memory where a GPU fetches them while it computes."""
    ids = torch.from_numpy(np.stack([row.input_ids for row in micro]))
    return ids.pin_memory() if device.type == "cuda" else ids


def _require_finite(what: str, value: float, step: int, taken: list[list[Any]]) -> None:
    """RegrowError where a sum over all processes, hence on all of them, is not finite in the step behind ``step``.

    Whether it was NaN or infinite is not said: ZeRO 1 to 3 report the norm of either as infinite.
    """
    if not math.isfinite(value):
        raise RegrowError(
            f"training step {step + 1}: the {what} is not finite; the update was not made, and the weights are as step "
            f"{step} left them. Look at rows {taken[0][0].index} to {taken[-1][-1].index} of this process. The same "
            "command goes on from the last checkpoint; where it ends here again, train anew with a lower "
            "train.learning_rate and --redo train"
        )


class SignOfLife:
    """Says which of a step's micro-batches is at work, once the step takes long, and then from time to time."""

    #: Seconds of a step before the first line, and between lines.
    FIRST, BETWEEN = 10, 60

    def __init__(self, say: Callable[[str], None], step: str, of: int, begin: float):
        self._say, self._step, self._of, self._begin = say, step, of, begin
        self._next = begin + self.FIRST

    def __call__(self, doing: str, number: int) -> None:
        now = time.perf_counter()
        if now >= self._next:
            self._say(f"{self._step}: {doing} micro-batch {number} of {self._of}, {now - self._begin:.0f} s")
            self._next = now + self.BETWEEN
