"""Cases of a step that may not be made: not finite, or without a target. What every process says, and what moved."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline.errors import RegrowError
from pipeline.training.engine import Engine
from pipeline.training.loop import Position, train_steps
from tests.training.kit import BATCH, LENGTH, STEPS, Case, difference, new_engine, rate, share, text, train, weights
from tests.training.tensors import Tensors, masters, moments


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


def no_target(case: Case) -> dict[str, Any]:
    """Every document of the batch is one token long."""

    def attempt(engine: Engine, position: Position) -> None:
        edges = np.arange(LENGTH + 1, dtype=np.int32)
        rows = (replace(row, cu_seqlens=edges) for row in share(text(BATCH * STEPS), case.world, BATCH))
        list(train_steps(engine, rows, position, steps=2, rate=rate, within_documents=True))

    return second_step(case, attempt)


stopped_gradient = partial(spoilt, spoil=Spoil.apply)
stopped_loss = partial(spoilt, spoil=lambda states: states * float("nan"))
