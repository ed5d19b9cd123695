"""Stage train: continued pretraining of the pruned model, with checkpoints, held-out losses and exports.

Killed anywhere and started again, it goes on at the newest complete checkpoint and ends in the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from pipeline.checks import one_large_step
from pipeline.config import Config
from pipeline.data.stream.loader import fitting_workers
from pipeline.data.stream.position import check_identity
from pipeline.errors import RegrowError
from pipeline.inputs import Inputs
from pipeline.launch import count_processes
from pipeline.life import Teller
from pipeline.model.costs import accumulation
from pipeline.origins import check_origin, checked_origin, origin_hashes
from pipeline.run import Run
from pipeline.stages.during import require_during
from pipeline.stages.opening import find_fit, keep_found, layout_of, open_session, rate_at
from pipeline.stages.sampling import open_answers
from pipeline.stages.stage import Ahead, Stage
from pipeline.stages.teaching import check_teacher, find_teacher, teacher_flops, teacher_hashes
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.determinism import deterministic
from pipeline.training.metrics import read_lines
from pipeline.world import World


def work(config: Config, run: Run, world: World, say: Teller) -> dict[str, Any]:
    """Train to the token budget; write train/metrics.jsonl, held_out.jsonl, checkpoints/ and exports/."""
    folder, recipe, steps = run.stage("train"), config.train, config.steps
    text = Inputs(config, run, run.stage("prune") / "model")
    origin = world.on_first(lambda: checked_origin(config, run, text.encoder))
    answers = open_answers(config, run, text, origin, world, say)
    fit = find_fit(config, run, origin, world, say, answers)
    layout = layout_of(config, world, fit)
    # Found and checked by one process for all: a damaged file, or another layout, ends the stage before it begins.
    found = world.on_first(lambda: newest_checkpoint(folder / "checkpoints", layout))
    if found:
        check_identity(found[1]["identity"], text.identity)
    world.on_first(lambda: keep_found(config, run, world, fit))
    torch.manual_seed(recipe.seed)
    wanted = world.device.type == "cpu" if recipe.deterministic == "auto" else recipe.deterministic
    with deterministic(wanted):
        session, flops = open_session(config, run, text, origin, layout, world, say, answers)
        session.resume(found)
        if found:
            say(f"resuming at step {session.position.step} of {steps}")
        during = config.evaluate.during.every
        if session.position.step == 0:
            session.evaluate()
            session.ask_tasks()
        for step in session.steps(steps, partial(rate_at, config), recipe.log_samples):
            last = step.step == steps
            # Evaluation and export come first: a resume at the checkpoint would not make them again.
            if last or step.step % recipe.evaluate_every == 0:
                session.evaluate()
            if during and (last or step.step % during == 0):
                session.ask_tasks()
            if not last and recipe.export_every and step.step % recipe.export_every == 0:
                session.export()
            if last or step.step % recipe.checkpoint_every == 0:
                session.checkpoint(recipe.keep_checkpoints)
        exported = session.export()
        session.close()
    lines = read_lines(folder / "metrics.jsonl") if world.rank == 0 else []
    return {
        "steps": steps,
        "tokens": session.position.tokens,
        "export": exported.relative_to(run.folder).as_posix(),
        "layout": asdict(layout),
        "flops": flops * session.position.tokens,
        "flops_per_token": flops,
        # Of a teacher that was asked ahead training takes none.
        "teacher_flops_per_token": teacher_flops(config, find_teacher(config)) if answers is None else 0.0,
        "seconds": sum(line["seconds"] for line in lines),
        "processes": world.size,
    }


def check(ahead: Ahead) -> list[str]:
    """Whether the batch and the lanes divide among the processes, where training begins, and whether a step is larger
    than the budget."""
    config = ahead.config
    processes = ahead.place.world if ahead.place.launcher else count_processes(config.train.processes)
    # Where it is to be found, one row is the least.
    rows = 1 if config.train.micro_batch == "auto" else config.train.micro_batch
    accumulation(config.train.global_batch, rows, processes)
    fitting_workers(config.data.workers, config.data.lanes, processes)
    if config.model.dtype == "float16":
        raise RegrowError(
            "model.dtype float16: training would need loss scaling, which is not here; take bfloat16 or float32"
        )
    require_during(config, ahead.elsewhere)
    origin = check_origin(config, ahead.encoder, ahead.elsewhere)
    return [*origin, *check_teacher(config, ahead.encoder, ahead.elsewhere), *one_large_step(config)]


STAGE = Stage(
    "train",
    upstream=("data", "prune"),
    format=5,
    work=work,
    # Beyond the outputs of data and prune.
    inputs=lambda config, run: origin_hashes(config, run) | teacher_hashes(config, run),
    launched=lambda config: True,
    check=check,
)
