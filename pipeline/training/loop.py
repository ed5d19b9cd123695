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
from functools import partial

import numpy as np
import torch

from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import LaneCursor
from pipeline.errors import RegrowError
from pipeline.model.loss import document_targets
from pipeline.model.sampled import Sampled
from pipeline.stopping import why_asked
from pipeline.training.engine import Engine
from pipeline.training.garbage import collected_between_steps


@dataclass(frozen=True)
class Step:
    """What one update did. ``loss`` is nats per target token of the global batch; times are in seconds.

    ``auxiliary_loss`` is the router's, before its coefficient, None where none is trained on; ``divergence`` from the
    teacher's predictions and ``disagreement`` with the states of its blocks are means over the target tokens, before
    their shares, None where there is no teacher, or its states are not met. ``seconds`` run from the
    end of the step before, or from the loop's begin, to the end of this one: with them ``tokens_per_second`` counts
    what was done between the steps too (evaluations, checkpoints, exports). ``data_wait`` is the part of them that the
    rows were waited for.
    """

    step: int
    tokens: int
    loss: float
    auxiliary_loss: float | None
    divergence: float | None
    disagreement: float | None
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    data_wait: float


@dataclass
class Position:
    """Where a run stands: updates done, tokens seen, and each own lane's cursor behind the rows consumed; and how many
    processes had been asked to stop when the last update was made, the same on all of them."""

    step: int = 0
    tokens: int = 0
    cursors: dict[int, LaneCursor] = field(default_factory=dict)
    asked: int = 0


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
    them while it computes; where documents begin in each, None where a row is one text; which tokens but the first of a
    row are targets (rows, T - 1) bool, None where all are; and what is ``known`` of a teacher's answer on them, None
    where it is still to be asked, or there is none."""

    rows: list[Row]
    ids: torch.Tensor
    documents: list[np.ndarray] | None
    counted: torch.Tensor | None
    known: Sampled | None = None

    @classmethod
    def of(
        cls, rows: list[Row], device: torch.device, within_documents: bool, known: Sampled | None = None
    ) -> MicroBatch:
        """The micro-batch of rows of one length."""
        ids = torch.from_numpy(np.stack([row.input_ids for row in rows]))
        documents = [row.cu_seqlens for row in rows] if within_documents else None
        counted = None if documents is None else document_targets(documents, ids.shape[1])
        if rows[0].counted is not None:
            stated = torch.from_numpy(np.stack([row.counted[1:] for row in rows]))
            counted = stated if counted is None else counted & stated
        if device.type == "cuda":
            ids, known = ids.pin_memory(), None if known is None else known.pinned()
        return cls(rows, ids, documents, counted, known)

    @property
    def targets(self) -> int:
        """Target tokens: all but the first of each row, or of each document in it, and but prompts and padding."""
        return self.ids[:, 1:].numel() if self.counted is None else int(self.counted.sum())


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
    reading, ended = ReadAhead(engine, rows, within_documents, at), time.perf_counter()
    with collected_between_steps() as collect:
        while position.step < steps:
            batch = reading.take(position.step)
            targets, tokens = _count(engine, batch, position.step)
            learning_rate = rate(position.step)
            engine.set_learning_rate(learning_rate)
            ahead = partial(reading.ahead, position.step + 1) if position.step + 1 < steps else None
            note = partial(_note, at, engine, position.step, "computing")
            losses, asked = _update(engine, batch, targets, position.step, note, ahead)
            norm = engine.gradient_norm()
            _require_finite("gradient norm", norm, position.step, batch)

            position.step += 1
            position.tokens += tokens
            position.asked = asked
            position.cursors.update({row.lane: row.cursor for micro in batch for row in micro.rows})
            if on_samples is not None:
                on_samples(position.step, [Sample.of(row) for micro in batch for row in micro.rows])
            collect(position.step)
            # Here the device has done all that was asked of it: the norm was waited for.
            before, ended = ended, time.perf_counter()
            yield Step(
                step=position.step,
                tokens=position.tokens,
                **_known(engine, losses),
                grad_norm=norm,
                learning_rate=learning_rate,
                tokens_per_second=tokens / (ended - before),
                seconds=ended - before,
                data_wait=reading.waited(),
            )


class ReadAhead:
    """This process's part of each global batch, in order; that of the next step while the device is still at work.

    What goes wrong in reading ahead is raised where its step begins: the step before it is done by then.
    """

    def __init__(self, engine: Engine, rows: Iterator[Row], within_documents: bool, at: Callable[[str], None]):
        self._engine, self._rows, self._within, self._at = engine, rows, within_documents, at
        self._ahead: list[MicroBatch] | Exception | None = None
        self._seconds = 0.0

    def take(self, step: int) -> list[MicroBatch]:
        """The micro-batches of the update behind ``step``."""
        found, self._ahead = self._ahead, None
        if isinstance(found, Exception):
            raise found
        return self._read(step) if found is None else found

    def ahead(self, step: int) -> None:
        """Read now what ``take(step)`` is to give."""
        try:
            self._ahead = self._read(step)
        except Exception as error:
            self._ahead = error

    def waited(self) -> float:
        """Seconds of reading since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _read(self, step: int) -> list[MicroBatch]:
        begin, taken = time.perf_counter(), []
        for number in range(1, self._engine.accumulation + 1):
            _note(self._at, self._engine, step, "reading", number)
            rows = [next(self._rows) for _ in range(self._engine.micro_batch)]
            teaching = self._engine.teaching
            known = None if teaching is None else teaching.known(rows)
            taken.append(MicroBatch.of(rows, self._engine.world.device, self._within, known))
        self._seconds += time.perf_counter() - begin
        return taken


def _note(at: Callable[[str], None], engine: Engine, step: int, doing: str, number: int) -> None:
    """Notes, by its number, which micro-batch of the update behind ``step`` is at work."""
    at(f"step {step + 1}: {doing} micro-batch {number} of {engine.accumulation}")


def _count(engine: Engine, batch: list[MicroBatch], step: int) -> tuple[int, int]:
    """(target tokens, tokens) of the global batch. RegrowError where there is not one target.

    Within documents, and of instruction data, the number of targets differs by row, and by process: the loss is over
    those of all. Else it is the same everywhere, and nobody need be asked.
    """
    targets, tokens = sum(micro.targets for micro in batch), sum(micro.ids.numel() for micro in batch)
    if batch[0].counted is None:
        targets, tokens = targets * engine.world.size, tokens * engine.world.size
    else:
        targets, tokens = engine.world.sum(torch.tensor([targets, tokens])).tolist()
    if targets == 0:
        raise RegrowError(
            f"training step {step + 1}: no document of the batch has a second token in its row, or no prompt a "
            "response, so that there is nothing to predict; use data.attention across, or longer documents"
        )
    return targets, tokens


def _update(
    engine: Engine,
    batch: list[MicroBatch],
    targets: int,
    step: int,
    note: Callable[[int], None],
    meanwhile: Callable[[], None] | None,
) -> tuple[dict[str, float], int]:
    """Gradients of the global batch and, where its loss is finite, one update. Returns a step's losses by their names,
    over all processes, and how many of these were asked to stop. ``meanwhile`` is called when all gradients are under
    way, and before they are waited for."""
    world = engine.world
    # Summed on the device: one wait for them in a step, not one in each micro-batch.
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    losses: dict[str, float] = {}
    asked = 0
    for number, micro in enumerate(batch, start=1):
        note(number)
        ids = micro.ids.to(world.device, non_blocking=True)
        sums += engine.backward(ids, targets, micro.documents, micro.counted, micro.known).double()
        if number == len(batch):
            if meanwhile is not None:
                meanwhile()
            # One more number in a sum that is made anyway: all processes learn of a request in the same step.
            own = torch.tensor([why_asked() is not None], dtype=sums.dtype)
            loss, auxiliary, divergence, disagreement, count = world.sum(torch.cat([sums.cpu(), own])).tolist()
            asked = int(count)
            losses = {
                "loss": loss / targets,
                "auxiliary_loss": auxiliary / (engine.accumulation * world.size),
                "divergence": divergence / targets,
                "disagreement": disagreement / targets,
            }
            _require_finite("loss", sum(losses.values()), step, batch)
        engine.step()
    return losses, asked


def _known(engine: Engine, losses: dict[str, float]) -> dict[str, float | None]:
    """Losses with None in the place of those that are not trained on."""
    teaching = engine.teaching
    trained_on = {
        "loss": True,
        "auxiliary_loss": engine.router_coefficient is not None,
        "divergence": teaching is not None,
        "disagreement": teaching is not None and teaching.hidden > 0,
    }
    return {name: value if trained_on[name] else None for name, value in losses.items()}


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
