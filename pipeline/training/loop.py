"""The training loop: from rows to updates, readable from top to bottom.

A step takes the rows of one global batch, counts its target tokens over all processes, accumulates gradients of the
sum of token losses divided by that count, and updates once. Splitting the same batch otherwise (micro-batch,
accumulation, processes) changes rounding only. What happens between steps (log, evaluate, checkpoint, export) is
decided by the step number alone, so that a resumed run does the same as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import LaneCursor
from pipeline.errors import RegrowError
from pipeline.stopping import why_asked
from pipeline.training.bad_steps import BadSteps
from pipeline.training.batches import MicroBatch, ReadAhead, note_micro_batch
from pipeline.training.engine import Engine
from pipeline.training.garbage import collected_between_steps
from pipeline.training.own_time import OwnTime, Slowest


@dataclass(frozen=True)
class Step:
    """What one update did. ``loss`` is nats per target token of the global batch; times are in seconds.

    ``auxiliary_loss`` is the router's, before its coefficient, None where none is trained on; ``divergence`` from the
    teacher's predictions and ``disagreement`` with the states of its blocks are means over the target tokens, before
    their shares, None where there is no teacher, or its states are not met. ``seconds`` run from the
    end of the step before, or from the loop's begin, to the end of this one: with them ``tokens_per_second`` counts
    what was done between the steps too (evaluations, checkpoints, exports). ``data_wait`` is the part of them that the
    rows were waited for. ``slowest`` is None where a process is alone. ``skipped`` says why the update was not made; a
    skipped step has no gradient norm (NaN).
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
    slowest: Slowest | None = None
    skipped: str | None = None


@dataclass
class Position:
    """Where a run stands: updates done or skipped, tokens seen, each own lane's cursor behind the rows consumed, what
    decides on bad steps, and how many processes had been asked to stop at the last update, the same on all of them."""

    step: int = 0
    tokens: int = 0
    cursors: dict[int, LaneCursor] = field(default_factory=dict)
    bad_steps: BadSteps = field(default_factory=BadSteps)
    asked: int = 0


def train_steps(
    engine: Engine,
    rows: Iterator[Row],
    position: Position,
    *,
    steps: int,
    rate: Callable[[int], float],
    within_documents: bool = False,
    on_rows: Callable[[int, list[Row], str | None], None] = lambda step, rows, skipped: None,
    at: Callable[[str], None] = lambda what: None,
) -> Iterator[Step]:
    """Train from ``position`` to ``steps``, yielding after each update; ``position`` is kept up to date.

    ``rows`` gives this process's rows in order; ``rate`` the learning rate of a step from 0 on. ``within_documents``:
    each document of a row is read alone. ``on_rows`` is told after each update, on every process, the step's number,
    this process's rows in the order in which they were taken, and why the update was not made, None where it was.
    ``at`` is told, before each micro-batch is read and computed, which of a step is at work.

    A bad step leaves weights and moments as they are. Its rows are spent all the same: the order of rows hangs on
    them, and the rates on its number.

    Raises RegrowError, on every process, on a global batch without a single target token, and on the bad step that
    ``position`` does not go on behind: before weights, moments, ``position`` or anything that is written have moved.
    """
    reading, own, ended = ReadAhead(engine, rows, within_documents, at), OwnTime(engine), time.perf_counter()
    with collected_between_steps() as collect:
        while position.step < steps:
            own.begin()
            batch = reading.take(position.step)
            with own.waiting():
                targets, tokens = _count(engine, batch, position.step)
            learning_rate = rate(position.step)
            engine.set_learning_rate(learning_rate)
            ahead = partial(reading.ahead, position.step + 1) if position.step + 1 < steps else None
            note = partial(note_micro_batch, at, engine, position.step, "computing")
            update = _update(engine, batch, targets, position, note, own, ahead)

            position.step += 1
            position.tokens += tokens
            position.asked = update.asked
            position.bad_steps.note(update.losses["loss"], update.skipped is not None)
            taken = [row for micro in batch for row in micro.rows]
            position.cursors.update({row.lane: row.cursor for row in taken})
            on_rows(position.step, taken, update.skipped)
            collect(position.step)
            # Here the device has done all that was asked of it: the norm was waited for.
            before, ended = ended, time.perf_counter()
            yield Step(
                step=position.step,
                tokens=position.tokens,
                **_known(engine, update.losses),
                grad_norm=update.norm,
                learning_rate=learning_rate,
                tokens_per_second=tokens / (ended - before),
                seconds=ended - before,
                data_wait=reading.waited(),
                slowest=update.slowest,
                skipped=update.skipped,
            )


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


@dataclass(frozen=True)
class Update:
    """What became of a global batch: its losses by their names, over all processes, the gradient norm, the slowest
    process, why the update was not made, None where it was, and how many processes were asked to stop."""

    losses: dict[str, float]
    norm: float
    slowest: Slowest | None
    skipped: str | None
    asked: int


def _update(
    engine: Engine,
    batch: list[MicroBatch],
    targets: int,
    position: Position,
    note: Callable[[int], None],
    own: OwnTime,
    meanwhile: Callable[[], None] | None,
) -> Update:
    """Gradients of the global batch and, where neither loss nor norm is bad, one update. ``meanwhile`` is called when
    all gradients are under way, and before they are waited for."""
    # Summed on the device: one wait for them in a step, not one in each micro-batch.
    sums = torch.zeros(4, dtype=torch.float64, device=engine.world.device)
    for number, micro in enumerate(batch, start=1):
        if number > 1:
            engine.step()
        note(number)
        ids = micro.ids.to(engine.world.device, non_blocking=True)
        sums += engine.backward(ids, targets, micro.documents, micro.counted, micro.known).double()
    if meanwhile is not None:
        meanwhile()
    losses, slowest, asked = _summed(engine, sums.cpu(), targets, own)
    skipped = position.bad_steps.fault(losses)
    if skipped is not None:
        _require_patience(skipped, position, batch)
    engine.step(update=skipped is None)
    norm = engine.gradient_norm() if skipped is None else math.nan
    if skipped is None and not math.isfinite(norm):
        skipped, norm = "the gradient norm is not finite", math.nan
        _require_patience(skipped, position, batch)
    return Update(losses, norm, slowest, skipped, asked)


def _summed(
    engine: Engine, sums: torch.Tensor, targets: int, own: OwnTime
) -> tuple[dict[str, float], Slowest | None, int]:
    """A step's losses by their names, its slowest process, and how many were asked to stop, by what this one summed:
    (4,) fp64 on the CPU. One sum, which is made anyway: all processes learn of a request in the same step."""
    world = engine.world
    seconds = torch.zeros(world.size, dtype=torch.float64)
    seconds[world.rank] = own.seconds()
    request = torch.tensor([why_asked() is not None], dtype=torch.float64)
    summed = world.sum(torch.cat([sums, request, seconds])).tolist()
    loss, auxiliary, divergence, disagreement, asked, *all_seconds = summed
    losses = {
        "loss": loss / targets,
        "auxiliary_loss": auxiliary / (engine.accumulation * world.size),
        "divergence": divergence / targets,
        "disagreement": disagreement / targets,
    }
    return losses, Slowest.of(all_seconds) if world.size > 1 else None, int(asked)


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


def _require_patience(fault: str, position: Position, batch: list[MicroBatch]) -> None:
    """RegrowError where a ``fault``, which all processes have found in the step behind ``position``, ends training."""
    bad_steps, step = position.bad_steps, position.step
    if not bad_steps.last_straw:
        return
    first, last = batch[0].rows[0].index, batch[-1].rows[-1].index
    many = f" This is bad step {bad_steps.limit} in a row (train.bad_steps)." if bad_steps.limit > 1 else ""
    remedy = "" if bad_steps.limit > 1 else "set train.bad_steps to skip such steps, or "
    raise RegrowError(
        f"training step {step + 1}: {fault}; the update was not made, and the weights are as step {step} left "
        f"them.{many} Look at rows {first} to {last} of this process. The same command goes on from the last "
        f"checkpoint; where it ends here again, {remedy}train anew with a lower train.learning_rate and --redo train"
    )
