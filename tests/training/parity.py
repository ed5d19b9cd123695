"""Cases of the loop itself: DeepSpeed's steps beside those of plain torch, and what the loop tells of them.

The reference is a plain torch loop on rank 0 over the same rows: AdamW with the same groups, clip_grad_norm_, one
update for each global batch.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model.loss import next_token_losses
from pipeline.training.batches import Sample
from pipeline.training.loop import Position, train_steps
from pipeline.training.optimisation import decay_groups
from tests.training.kit import (
    BATCH,
    LENGTH,
    PEAK,
    STEPS,
    Case,
    difference,
    documents,
    new_engine,
    new_model,
    rate,
    share,
    text,
    train,
)


def whole_rows(model: Any, rows: torch.Tensor, first: int) -> torch.Tensor:
    """Mean loss of rows that are one text each."""
    return next_token_losses(model(rows).logits, rows).mean()


def documents_alone(model: Any, rows: torch.Tensor, first: int) -> torch.Tensor:
    """Mean loss of the documents of rows ``first`` and on, from one forward for each with nothing but its ids."""
    losses = []
    for index, row in enumerate(rows, start=first):
        for begin, end in pairwise(documents(index).tolist()):
            piece = row[None, begin:end]
            if end - begin > 1:
                losses.append(next_token_losses(model(piece).logits, piece).flatten())
    return torch.cat(losses).mean()


def plain_loop(
    model: Any, data: torch.Tensor, batch: int, loss_of: Callable[[Any, torch.Tensor, int], torch.Tensor] = whole_rows
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the reference; ``model`` is trained in place."""
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1, ("bias", "norm")), lr=PEAK, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(STEPS):
        loss = loss_of(model, data[step * batch : (step + 1) * batch], step * batch)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses, norms


def parity(
    case: Case,
    loss_of: Callable[[Any, torch.Tensor, int], torch.Tensor] = whole_rows,
    made: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Three steps by DeepSpeed beside three by the reference in fp32, from the same values; ``made`` are options of the
    engine, ``options`` of the loop."""
    micro_batch, data = (2 if case.world.size == 2 else 1), text(BATCH * STEPS)
    engine = new_engine(case, micro_batch, **(made or {}))
    steps = train(engine, data, STEPS, **options)
    weights = engine.weights()
    if weights is None:
        return {}
    before = new_model(case.dtype).float().state_dict()
    reference = new_model(case.dtype).float()
    losses, norms = plain_loop(reference, data, BATCH, loss_of)
    after = reference.state_dict()
    moved = torch.cat([(weights[name].float() - before[name]).flatten() for name in before])
    wanted = torch.cat([(after[name] - before[name]).flatten() for name in before])
    return {
        "steps": steps,
        "losses": losses,
        "norms": norms,
        "difference": difference(weights, after),
        "cosine": float(torch.cosine_similarity(moved, wanted, dim=0)),
        "moved": float(wanted.abs().max()),
        "compiled": None if engine.compiled is None else list(engine.compiled.news()),
        "dtypes": sorted({str(value.dtype) for value in weights.values()}),
    }


def within(case: Case) -> dict[str, Any]:
    """The same with every document alone, and the samples that each process told of."""
    told: list[tuple[int, list[Sample]]] = []
    found = parity(
        case,
        documents_alone,
        within_documents=True,
        on_rows=lambda step, rows, skipped: told.append((step, [Sample.of(row) for row in rows])),
    )
    samples = case.world.gather([(step, [asdict(sample) for sample in samples]) for step, samples in told])
    if case.world.rank != 0:
        return {}
    hashes = [hashlib.sha256(np.array(row, dtype="<i8").tobytes()).hexdigest() for row in text(BATCH * STEPS).tolist()]
    return {**found, "samples": samples, "hashes": hashes}


def responses(index: int) -> np.ndarray:
    """Which tokens of row ``index`` are a response: one stretch, whose begin and end differ by row; of row 5 none."""
    counted = np.zeros(LENGTH, dtype=bool)
    if index != 5:
        counted[3 + index % 7 : LENGTH - index % 5] = True
    return counted


def responses_alone(model: Any, rows: torch.Tensor, first: int) -> torch.Tensor:
    """Mean loss of the tokens of rows ``first`` and on that are responses."""
    counted = np.stack([responses(first + number)[1:] for number in range(len(rows))])
    return next_token_losses(model(rows).logits, rows)[torch.from_numpy(counted)].mean()


def masked(case: Case) -> dict[str, Any]:
    """Three steps on responses alone beside three by the reference."""
    data, engine = text(BATCH * STEPS), new_engine(case, 2)
    rows = (replace(row, counted=responses(row.index)) for row in share(data, case.world))
    steps = [asdict(step) for step in train_steps(engine, rows, Position(), steps=STEPS, rate=rate)]
    weights = engine.weights()
    if weights is None:
        return {}
    before, reference = new_model(case.dtype).state_dict(), new_model(case.dtype)
    losses, norms = plain_loop(reference, data, BATCH, responses_alone)
    after = reference.state_dict()
    return {
        "steps": steps,
        "losses": losses,
        "norms": norms,
        "difference": difference(weights, after),
        "moved": difference(after, before),
    }


def split(case: Case) -> dict[str, Any]:
    """The same rows as micro-batches of 1, accumulated 8 times, and as one micro-batch of 8."""
    batch = 8 * case.world.size
    engines = [new_engine(case, micro_batch, batch) for micro_batch in (1, 8)]
    losses = [[step["loss"] for step in train(engine, text(batch * STEPS), STEPS)] for engine in engines]
    ends = [engine.weights() for engine in engines]
    if case.world.rank != 0:
        return {}
    accumulation = [engine.accumulation for engine in engines]
    return {"accumulation": accumulation, "difference": difference(*ends), "losses": losses}


def recomputed(case: Case) -> dict[str, Any]:
    """Losses and norms with each kind of gradient checkpointing, and how often a step multiplies, and takes a norm."""
    data, found = text(BATCH * STEPS), {}
    for recompute in ("none", "selective", "full"):
        engine = new_engine(case, 2, gradient_checkpointing=recompute)
        with Counting() as counting:
            steps = train(engine, data, STEPS)
        found[recompute] = {
            "losses": [[step["loss"], step["grad_norm"]] for step in steps],
            "products": counting.calls[torch.ops.aten.mm.default],
            "norms": counting.calls[torch.ops.aten.rsqrt.default],
        }
        engine.close()
    return found


class Counting(TorchDispatchMode):
    """Counts the calls of every operation."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.calls[function] += 1
        return function(*arguments, **(keywords or {}))


def signs(case: Case) -> dict[str, Any]:
    """Two steps with pauses between them, and what was noted to be at work."""
    engine, position, noted, steps = new_engine(case, 2), Position(), [], []
    for step in train_steps(engine, share(text(16), case.world), position, steps=2, rate=rate, at=noted.append):
        steps.append(asdict(step))
        time.sleep(0.2)
    return {"noted": noted, "steps": steps}


def sums(case: Case) -> dict[str, Any]:
    """A step of four micro-batches with gradients added as they come, and as DeepSpeed adds them by itself: how far the
    weights are apart, and how often something was written in fp32 anew."""
    data, ends, copies = text(8 * case.world.size), [], []
    for ours in (True, False):
        engine = new_engine(case, 2, len(data))
        if not ours:
            del engine.optimizer._update_hp_grad
        with Counting() as counting:
            train(engine, data, 1)
        copies.append(counting.calls[torch.ops.aten._to_copy.default])
        ends.append(engine.weights())
    if case.world.rank != 0:
        return {}
    parameters = len(list(engine.model.parameters()))
    return {"difference": difference(*ends), "copies": copies, "parameters": parameters}
