"""Cases of what is kept: checkpoints that training goes on from, and weights that transformers loads."""

from __future__ import annotations

import resource
from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pipeline.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from pipeline.training.loop import Position, train_steps
from tests.training.kit import BATCH, STEPS, Case, difference, new_engine, new_model, rate, share, text, train
from tests.training.layout import LAYOUT


def resume(case: Case, **options: Any) -> dict[str, Any]:
    """Four steps straight on; and two, a checkpoint, a fresh engine, and two more. ``options`` are the engine's."""
    micro_batch, data = 2, text(BATCH * 4)
    root = case.folder / "-".join(["checkpoints", str(case.zero_stage), str(case.dtype), *options])
    straight = new_engine(case, micro_batch, **options)
    whole = train(straight, data, 4)

    first, position = new_engine(case, micro_batch, **options), Position()
    train(first, data, 2, position)
    torch.manual_seed(5 + case.world.rank)
    cursors = {lane: asdict(cursor) for part in case.world.gather(position.cursors) for lane, cursor in part.items()}
    state = {"step": position.step, "tokens": position.tokens, "layout": asdict(LAYOUT), "cursors": cursors}
    save_checkpoint(root, first, case.world, step=2, state=state, keep=2)
    noise = torch.rand(3)

    second = new_engine(case, micro_batch, **options)
    checkpoint, state = newest_checkpoint(root, LAYOUT)
    load_checkpoint(checkpoint, second, case.world)
    same_noise = case.world.gather(torch.equal(noise, torch.rand(3)))
    position = Position(state["step"], state["tokens"])
    steps = train_steps(
        second,
        share(data, case.world, 2 * BATCH),
        position,
        steps=4,
        rate=rate,
    )
    rest = [asdict(step) for step in steps]
    ends = [straight.weights(), second.weights()]
    if case.world.rank != 0:
        return {}
    return {
        "root": str(root),
        "same_noise": same_noise,
        "equal": all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]),
        "changed": difference(ends[0], new_model(case.dtype).state_dict()),
        "cursors": state["cursors"],
        "whole": whole,
        "rest": rest,
        "files": sorted(p.name for p in checkpoint.iterdir()),
    }


def resume_with_all(case: Case) -> dict[str, Any]:
    """The same with compiled blocks that recompute selectively."""
    return resume(case, compile_blocks=True, gradient_checkpointing="selective")


def export(case: Case) -> dict[str, Any]:
    """Logits of a trained engine in evaluation, and of its weights saved and loaded by transformers alone."""
    data, target = text(BATCH * STEPS), case.folder / f"export-{case.zero_stage}"
    engine = new_engine(case, 2)
    train(engine, data, STEPS)
    engine.engine.eval()
    with torch.no_grad():
        logits = engine.engine(data[:4], use_cache=False).logits
    weights = engine.weights()
    if weights is None:
        return {}
    model = new_model(case.dtype)
    model.load_state_dict(weights)
    model.save_pretrained(target)
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(target, dtype=case.dtype).eval()
        again = loaded(data[:4], use_cache=False).logits
        untrained = new_model(case.dtype).eval()(data[:4], use_cache=False).logits
    return {
        "equal": torch.equal(logits, again),
        "trained": not torch.equal(logits, untrained),
        "dtype": str(logits.dtype),
    }


def one_sided(case: Case) -> dict[str, Any]:
    """A checkpoint that rank 0 alone cannot write; the caller sees how this program ends."""
    engine = new_engine(case, 2)
    state = {"step": 1, "layout": asdict(LAYOUT)}
    arguments = {"state": state, "keep": 2}
    save_checkpoint(case.folder / "one-sided", engine, case.world, step=1, **arguments)
    if case.world.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save_checkpoint(case.folder / "one-sided", engine, case.world, step=2, **arguments)
    return {}
