"""Cases of what is kept: checkpoints that training goes on from, and weights that transformers loads."""

from __future__ import annotations

import errno
import resource
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pipeline.errors import RegrowError
from pipeline.files import read_json
from pipeline.training import saving
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.loop import Position, train_steps
from pipeline.training.restoring import load_checkpoint
from pipeline.training.saving import Checkpoints
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
    state = {"step": position.step, "tokens": position.tokens, "cursors": cursors}
    checkpoints = Checkpoints(root, first, LAYOUT)
    checkpoints.save(2, state)
    noise = torch.rand(3)
    checkpoints.wait()

    second = new_engine(case, micro_batch, **options)
    checkpoint, state = newest_checkpoint(root, LAYOUT, case.world)
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


def beside(case: Case) -> dict[str, Any]:
    """Checkpoints of one state: written while training waits; while it goes on, held up until it has moved; and where
    one process has no memory for a copy. Then one that rank 1 cannot write."""
    data, engine, said = text(BATCH * 4), new_engine(case, 2), []
    root, gate, real = case.folder / f"beside-{case.zero_stage}", threading.Event(), saving.write
    train(engine, data, 2)

    def complete(name: str) -> dict[str, Any]:
        file = root / name / "step-00000002" / "COMPLETE"
        return read_json(file)["files"] if file.exists() else {}

    blocking = Checkpoints(root / "blocking", engine, LAYOUT, background=False)
    blocking.save(2, {"step": 2})
    first = complete("blocking")

    def held_up(path: Path, parts: Any) -> dict[str, Any]:
        gate.wait()
        return real(path, parts)

    narrow = Checkpoints(root / "narrow", engine, LAYOUT, say=said.append)
    background = Checkpoints(root / "background", engine, LAYOUT)
    free = saving.available_memory
    try:
        if case.world.rank == 1:
            saving.available_memory = lambda: 100
        narrow.save(2, {"step": 2})
        saving.available_memory, saving.write = free, held_up
        background.save(2, {"step": 2})
        train(engine, data, 3, Position(2, 0))
        background.look()
        during = complete("background")
        gate.set()
        background.wait()
        saving.write = no_room if case.world.rank == 1 else real
        background.save(4, {"step": 4})
        background.wait()
        problem = None
    except RegrowError as error:
        problem = str(error)
    finally:
        saving.available_memory, saving.write = free, real
    problems = case.world.gather(problem)
    left = sorted(path.name for path in (root / "background").iterdir())
    background.save(4, {"step": 4})
    background.wait()
    found = {
        "blocking": first,
        "narrow": complete("narrow"),
        "during": during,
        "background": complete("background"),
        "said": said,
        "moved": read_json(root / "background" / "step-00000004" / "COMPLETE")["files"] != first,
        "problems": problems,
        "left": left,
    }
    engine.close()
    return found


def no_room(path: Path, parts: Any) -> dict[str, Any]:
    """What a full disk says."""
    path.write_bytes(b"begun")
    raise OSError(errno.ENOSPC, "No space left on device")


def one_sided(case: Case) -> dict[str, Any]:
    """A checkpoint that rank 0 alone cannot write; the caller sees how this program ends."""
    engine = new_engine(case, 2)
    train(engine, text(BATCH), 1)
    checkpoints = Checkpoints(case.folder / "one-sided", engine, LAYOUT)
    checkpoints.save(1, {"step": 1})
    checkpoints.wait()
    if case.world.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    checkpoints.save(2, {"step": 2})
    checkpoints.wait()
    return {}
