"""Cases of a step that may not be made, since it is not finite or has no target, or that is skipped: what moved."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline.data.stream.packing import Row
from pipeline.errors import RegrowError
from pipeline.training.bad_steps import BadSteps
from pipeline.training.engine import Engine
from pipeline.training.loop import Position, train_steps
from tests.training.kit import BATCH, LENGTH, STEPS, Case, difference, new_engine, rate, share, text, train, weights
from tests.training.tensors import Tensors, counts, masters, moments


class Spoil(torch.autograd.Function):
    """Leaves values as they are; the gradient that comes back is infinite in one place, as from an overflow."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor) -> torch.Tensor:
        return states.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0, 0, 0] = float("inf")
        return gradient


@contextlib.contextmanager
def spoiled(engine: Engine, spoil: Any) -> Iterator[None]:
    """The states before the head go through ``spoil``."""
    hook = engine.model.model.norm.register_forward_hook(lambda module, given, states: spoil(states))
    yield
    hook.remove()


@contextlib.contextmanager
def listening(lines: list[str]) -> Iterator[None]:
    """Within it what DeepSpeed's logger lets through is put into ``lines``."""
    from deepspeed.utils import logger

    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def second_step(case: Case, attempt: Callable[[Engine, Position], Any]) -> dict[str, Any]:
    """Step 1 is made; ``attempt`` is to raise in step 2: what every rank says, and what has moved since step 1."""
    engine, position, message = new_engine(case, 2), Position(), ""
    untrained = weights(engine)
    train(engine, text(BATCH * STEPS), 1, position)

    def state() -> tuple[Tensors, ...]:
        return weights(engine), masters(engine), moments(engine)

    before, place = state(), (position.step, position.tokens, dict(position.cursors))
    beside: list[str] = []
    with listening(beside):
        try:
            attempt(engine, position)
        except RegrowError as error:
            message = str(error)
    moved = [name for old, new in zip(before, state(), strict=True) for name in old if not old[name].equal(new[name])]
    return {
        "messages": case.world.gather(message),
        "beside": case.world.gather(beside),
        "moved": case.world.gather(moved),
        "compared": [len(part) for part in before],
        "position": case.world.gather(place == (position.step, position.tokens, position.cursors)),
        "trained": difference(untrained, before[0]) if case.world.rank == 0 else None,
    }


def spoilt(case: Case, spoil: Any) -> dict[str, Any]:
    """Rank 1 alone goes wrong."""

    def attempt(engine: Engine, position: Position) -> None:
        with spoiled(engine, spoil) if case.world.rank == 1 else contextlib.nullcontext():
            train(engine, text(BATCH * STEPS), STEPS, position)

    return second_step(case, attempt)


def skipped(case: Case, spoil: Any, spike: float | None = None) -> dict[str, Any]:
    """Step 2 is skipped, since rank 1 alone goes wrong; an engine that never saw its rows makes steps 1 and 3."""
    engine, position = new_engine(case, 2), Position(bad_steps=BadSteps(2, spike, window=1))
    other, elsewhere, data = new_engine(case, 2), Position(), text(BATCH * STEPS)
    told: list[tuple[int, list[int], str | None]] = []

    def on_rows(step: int, rows: list[Row], reason: str | None) -> None:
        told.append((step, [row.index for row in rows], reason))

    def state(engine: Engine) -> tuple[Tensors, ...]:
        return weights(engine), masters(engine), moments(engine), counts(engine)

    def differing(old: tuple[Tensors, ...], new: tuple[Tensors, ...]) -> list[list[str]]:
        names = [
            name
            for before, after in zip(old, new, strict=True)
            for name in before
            if not before[name].equal(after[name])
        ]
        return case.world.gather(names)

    train(engine, data, 1, position)
    before = state(engine)
    with spoiled(engine, spoil) if case.world.rank == 1 else contextlib.nullcontext():
        step = train(engine, data, 2, position, on_rows=on_rows)[0]
    moved, place = differing(before, state(engine)), (position.step, position.tokens)
    after = train(engine, data, STEPS, position, on_rows=on_rows)[0]
    train(other, data, 1, elsewhere)
    same = train(other, data, STEPS, Position(step=2))[0]
    return {
        "moved": moved,
        "compared": [len(part) for part in before],
        "place": place,
        "told": case.world.gather(told),
        "step": {name: step[name] if math.isfinite(step[name]) else None for name in ("loss", "grad_norm")},
        "after": [after["loss"], after["grad_norm"]],
        "same": [same["loss"], same["grad_norm"]],
        "differing": differing(state(other), state(engine)),
        "trained": differing(before, state(engine)),
    }


def no_target(case: Case) -> dict[str, Any]:
    """Every document of the batch is one token long."""

    def attempt(engine: Engine, position: Position) -> None:
        edges = np.arange(LENGTH + 1, dtype=np.int32)
        rows = (replace(row, cu_seqlens=edges) for row in share(text(BATCH * STEPS), case.world, BATCH))
        list(train_steps(engine, rows, position, steps=2, rate=rate, within_documents=True))

    return second_step(case, attempt)


def worn_out(case: Case) -> dict[str, Any]:
    """Steps 2 and 3 go wrong on rank 1, and two in a row are one too many."""
    engine, position, message = new_engine(case, 2), Position(bad_steps=BadSteps(2)), ""
    train(engine, text(BATCH * STEPS), 1, position)
    before = weights(engine)
    with spoiled(engine, Spoil.apply) if case.world.rank == 1 else contextlib.nullcontext():
        try:
            train(engine, text(BATCH * STEPS), STEPS, position)
        except RegrowError as error:
            message = str(error)
    moved = [name for name, value in weights(engine).items() if not value.equal(before[name])]
    return {"messages": case.world.gather(message), "moved": moved, "step": position.step}


def slowed(case: Case) -> dict[str, Any]:
    """Rank 1 takes 0.2 s longer for the forward of each micro-batch."""
    engine = new_engine(case, 2)
    if case.world.rank == 1:
        engine.model.register_forward_pre_hook(lambda module, given: time.sleep(0.2))
    return {"slowest": [step["slowest"] for step in train(engine, text(BATCH * STEPS), STEPS)]}


stopped_gradient = partial(spoilt, spoil=Spoil.apply)
stopped_loss = partial(spoilt, spoil=lambda states: states * float("nan"))
skipped_gradient = partial(skipped, spoil=Spoil.apply)
skipped_loss = partial(skipped, spoil=lambda states: states * float("nan"))
#: Finite losses and gradients.
skipped_spike = partial(skipped, spoil=lambda states: states * 50.0, spike=2.0)
