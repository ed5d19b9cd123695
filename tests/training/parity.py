"""The program that the tests of training start under torchrun: real DeepSpeed engines, one after another.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.training.parity FOLDER CASE...

Each case writes what it measured to FOLDER/CASE.json on rank 0; the tests judge it. The reference is a plain torch
loop on rank 0 over the same rows: AdamW with the same groups, clip_grad_norm_, one update for each global batch.
Cases of gradients alone are in gradients.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.training.kit import (  # first of all: it settles this process's place and threads
    BATCH,
    LAYOUT,
    LENGTH,
    PEAK,
    STEPS,
    World,
    difference,
    documents,
    new_engine,
    new_model,
    place,
    rate,
    share,
    text,
    train,
    weights,
)

# isort: split
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from pipeline.errors import RegrowError
from pipeline.model.loss import next_token_losses
from pipeline.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from pipeline.training.engine import decay_groups
from pipeline.training.loop import Position, Sample, SignOfLife, train_steps
from tests.training import gradients


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
    world: World,
    zero_stage: int,
    dtype: torch.dtype,
    loss_of: Callable[[Any, torch.Tensor, int], torch.Tensor] = whole_rows,
    **options: Any,
) -> dict[str, Any]:
    """Three steps by DeepSpeed beside three by the reference in fp32, from the same values."""
    micro_batch, data = (2 if world.size == 2 else 1), text(BATCH * STEPS)
    engine = new_engine(world, zero_stage, dtype, micro_batch)
    steps = train(engine, data, world, micro_batch, STEPS, **options)
    weights = engine.weights()
    if weights is None:
        return {}
    before = new_model(dtype).float().state_dict()
    reference = new_model(dtype).float()
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
        "dtypes": sorted({str(value.dtype) for value in weights.values()}),
    }


def within(world: World, zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """The same with every document alone; the samples that each process told of; and a batch without a target."""
    told: list[tuple[int, list[Sample]]] = []
    found = parity(
        world,
        zero_stage,
        dtype,
        documents_alone,
        within_documents=True,
        on_samples=lambda step, samples: told.append((step, samples)),
    )
    engine, message = new_engine(world, zero_stage, dtype, 2), ""
    before = weights(engine)
    single = (replace(row, cu_seqlens=np.arange(LENGTH + 1, dtype=np.int32)) for row in share(text(BATCH), world))
    try:
        next(
            train_steps(
                engine,
                single,
                Position(),
                steps=1,
                rate=rate,
                within_documents=True,
            )
        )
    except RegrowError as error:
        message = str(error)
    messages, after = world.gather(message), weights(engine)
    samples = world.gather([(step, [asdict(sample) for sample in samples]) for step, samples in told])
    if world.rank != 0:
        return {}
    hashes = [hashlib.sha256(np.array(row, dtype="<i8").tobytes()).hexdigest() for row in text(BATCH * STEPS).tolist()]
    return {
        **found,
        "samples": samples,
        "hashes": hashes,
        "messages": messages,
        "untouched": difference(before, after) == 0,
    }


def split(world: World) -> dict[str, Any]:
    """The same rows as micro-batches of 1, accumulated 8 times, and as one micro-batch of 8."""
    results, batch = {}, 8 * world.size
    data = text(batch * STEPS)
    for micro_batch in (1, 8):
        engine = new_engine(world, 1, torch.float32, micro_batch, batch)
        results[micro_batch] = (train(engine, data, world, micro_batch, STEPS), engine.weights(), engine.accumulation)
    if world.rank != 0:
        return {}
    return {
        "accumulation": [results[1][2], results[8][2]],
        "difference": difference(results[1][1], results[8][1]),
        "losses": [[step["loss"] for step in results[micro_batch][0]] for micro_batch in (1, 8)],
    }


def resume(world: World, folder: Path, zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """Four steps straight on; and two, a checkpoint, a fresh engine, and two more."""
    micro_batch, data, root = 2, text(BATCH * 4), folder / f"checkpoints-{zero_stage}-{dtype}"
    straight = new_engine(world, zero_stage, dtype, micro_batch)
    whole = train(straight, data, world, micro_batch, 4)

    first, position = new_engine(world, zero_stage, dtype, micro_batch), Position()
    train(first, data, world, micro_batch, 2, position)
    torch.manual_seed(5 + world.rank)
    cursors = {lane: asdict(cursor) for part in world.gather(position.cursors) for lane, cursor in part.items()}
    state = {"step": position.step, "tokens": position.tokens, "layout": asdict(LAYOUT), "cursors": cursors}
    save_checkpoint(root, first, world, step=2, state=state, keep=2)
    noise = torch.rand(3)

    second = new_engine(world, zero_stage, dtype, micro_batch)
    checkpoint, state = newest_checkpoint(root, LAYOUT)
    load_checkpoint(checkpoint, second, world)
    same_noise = world.gather(torch.equal(noise, torch.rand(3)))
    position = Position(state["step"], state["tokens"])
    steps = train_steps(
        second,
        share(data, world, 2 * BATCH),
        position,
        steps=4,
        rate=rate,
    )
    rest = [asdict(step) for step in steps]
    ends = [straight.weights(), second.weights()]
    if world.rank != 0:
        return {}
    return {
        "root": str(root),
        "same_noise": same_noise,
        "equal": all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]),
        "changed": difference(ends[0], new_model(dtype).state_dict()),
        "cursors": state["cursors"],
        "whole": whole,
        "rest": rest,
        "files": sorted(p.name for p in checkpoint.iterdir()),
    }


def export(world: World, folder: Path, zero_stage: int) -> dict[str, Any]:
    """Logits of a trained engine in evaluation, and of its weights saved and loaded by transformers alone."""
    data, target = text(BATCH * STEPS), folder / f"export-{zero_stage}"
    engine = new_engine(world, zero_stage, torch.bfloat16, 2)
    train(engine, data, world, 2, STEPS)
    engine.engine.eval()
    with torch.no_grad():
        logits = engine.engine(data[:4], use_cache=False).logits
    weights = engine.weights()
    if weights is None:
        return {}
    model = new_model(torch.bfloat16)
    model.load_state_dict(weights)
    model.save_pretrained(target)
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()
        again = loaded(data[:4], use_cache=False).logits
        untrained = new_model(torch.bfloat16).eval()(data[:4], use_cache=False).logits
    return {
        "equal": torch.equal(logits, again),
        "trained": not torch.equal(logits, untrained),
        "dtype": str(logits.dtype),
    }


def recomputed(world: World) -> dict[str, Any]:
    """Losses with and without gradient checkpointing."""
    data, losses = text(BATCH * STEPS), []
    for recompute in (False, True):
        engine = new_engine(world, 3, torch.float32, 2, gradient_checkpointing=recompute)
        losses.append([step["loss"] for step in train(engine, data, world, 2, STEPS)])
    blocks = engine.model.model.layers
    return {"losses": losses, "recomputes": all(block.gradient_checkpointing for block in blocks)}


def signs(world: World) -> dict[str, Any]:
    """Two steps that count as long from the start, with pauses between them, and a third that does not."""
    engine, data, position, lines, steps = new_engine(world, 1, torch.float32, 2), text(24), Position(), [], []
    limits = SignOfLife.FIRST, SignOfLife.BETWEEN
    SignOfLife.FIRST = SignOfLife.BETWEEN = 0
    for step in train_steps(
        engine,
        share(data, world),
        position,
        steps=2,
        rate=rate,
        say=lines.append,
    ):
        steps.append(asdict(step))
        time.sleep(0.2)
    SignOfLife.FIRST, SignOfLife.BETWEEN = limits
    quick: list[str] = []
    train(engine, data, world, 2, STEPS, position, say=quick.append)
    return {"lines": lines, "quick": quick, "steps": steps}


def one_sided(world: World, folder: Path) -> dict[str, Any]:
    """A checkpoint that rank 0 alone cannot write; the caller sees how this program ends."""
    import resource

    engine = new_engine(world, 1, torch.bfloat16, 2)
    state = {"step": 1, "layout": asdict(LAYOUT)}
    arguments = {"state": state, "keep": 2}
    save_checkpoint(folder / "one-sided", engine, world, step=1, **arguments)
    if world.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save_checkpoint(folder / "one-sided", engine, world, step=2, **arguments)
    return {}


def run_case(case: str, world: World, folder: Path) -> dict[str, Any]:
    """The case by its name: what, then its ZeRO stage and dtype where it has them."""
    what, *rest = case.split("-")
    stage = int(rest[0]) if rest else 0
    dtype = torch.bfloat16 if "bf16" in rest else torch.float32
    if what == "parity":
        return parity(world, stage, dtype)
    if what == "within":
        return within(world, stage, dtype)
    if what == "resume":
        return resume(world, folder, stage, dtype)
    if what == "export":
        return export(world, folder, stage)
    if what == "one_sided":
        return one_sided(world, folder)
    if what == "unreached":
        return gradients.unreached(world, folder, stage, dtype)
    if what in gradients.CASES:
        return gradients.CASES[what](world, stage, dtype)
    return {"split": split, "recomputed": recomputed, "signs": signs}[what](world)


def main() -> None:
    folder, world = Path(sys.argv[1]), World.join(place)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    for case in sys.argv[2:]:
        result = run_case(case, world, folder)
        if world.rank == 0:
            (folder / f"{case}.json").write_text(json.dumps(result))
        world.barrier()
    with contextlib.suppress(RuntimeError):
        world.close()


if __name__ == "__main__":
    main()
