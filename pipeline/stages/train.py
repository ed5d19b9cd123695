"""Stage train: continued pretraining of the pruned model, with checkpoints, held-out losses and exports.

Killed anywhere and started again, it goes on at the newest complete checkpoint and ends in the same bytes.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.checks import one_large_step
from pipeline.config import Config
from pipeline.data.stream.loader import fitting_workers
from pipeline.data.stream.position import check_identity
from pipeline.errors import RegrowError
from pipeline.following import AT_ITS_END, check_before, keep_position, position_hashes, runs_before
from pipeline.inputs import Inputs
from pipeline.life import Teller
from pipeline.model.costs import accumulation
from pipeline.model.lora import find_targets
from pipeline.origins import check_origin, checked_origin, origin_hashes
from pipeline.run import Run
from pipeline.stages.boards import look_at_boards, shown_on_boards
from pipeline.stages.dealing import known_lanes, lanes_ahead, training_processes
from pipeline.stages.during import require_during
from pipeline.stages.healing import begin_with, check_heal, healing_hashes, read_healing
from pipeline.stages.history import note_failure
from pipeline.stages.longer import earlier_ends, forget_end
from pipeline.stages.opening import find_fit, keep_found, layout_of, open_session
from pipeline.stages.rates import rate_at
from pipeline.stages.sampling import open_answers
from pipeline.stages.stage import Ahead, Stage
from pipeline.stages.teaching import (
    check_teacher,
    require_known_tokens,
    teacher_hashes,
)
from pipeline.training.bad_steps import BadSteps
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.determinism import deterministic
from pipeline.training.metrics import read_lines
from pipeline.training.session import Session
from pipeline.training.stopping import Stop, Stopped, stopping
from pipeline.training.watchdog import Watchdog
from pipeline.world import World


def work(config: Config, run: Run, world: World, say: Teller) -> dict[str, Any]:
    """Train to the token budget; write train/metrics.jsonl, held_out.jsonl, position.json, checkpoints/, exports/.

    Asked to stop, it does so between two steps, as ``stopping`` says.
    """
    with stopping(run.stage("train"), world, say) as stop:
        return _train(config, run, world, say, stop)


def _train(config: Config, run: Run, world: World, say: Teller, stop: Stop) -> dict[str, Any]:
    folder, recipe, steps = run.stage("train"), config.train, config.steps
    text = Inputs(config, run, run.stage("prune") / "model")
    origin = world.on_first(lambda: checked_origin(config, run, text.encoder))
    world.on_first(lambda: require_known_tokens(config, text.encoder))
    wanted = world.device.type == "cpu" if recipe.deterministic == "auto" else recipe.deterministic
    hung = partial(note_failure, "train", run, world.rank)
    with deterministic(wanted), Watchdog(folder, world.rank, recipe.hang_seconds, note=hung) as watchdog:
        origin = begin_with(config, run, origin, world, say, stop.look)
        answers = open_answers(config, run, text, origin, world, say, stop.look)
        fit = find_fit(config, run, origin, world, say, answers)
        layout = layout_of(config, world, fit)
        # Read by all processes in shares: a damaged file ends the stage here.
        found = newest_checkpoint(folder / "checkpoints", layout, world)
        if found:
            check_identity(found[1]["identity"], text.identity)
        world.on_first(lambda: keep_found(config, run, world, fit))
        session, flops = open_session(config, run, text, origin, layout, world, say, answers)
        # Each process draws its own: dropout is not to take the same places in the rows of all.
        torch.manual_seed(recipe.seed + world.rank)
        session.resume(found, recipe.seed)
        world.on_first(lambda: forget_end(config, run, session.position.step))
        if found:
            say(f"resuming at step {session.position.step} of {steps}")
            if change := layout.change(found[1]["layout"]):
                say(change)
        elif text.begin.row:
            say(f"beginning at row {text.begin.row}, behind the last one of {config.data.after}")
        with shown_on_boards(config, run, session, say):
            _go_on(config, session, stop, watchdog)
        # What the export may meet is not to cost the last checkpoint.
        session.await_checkpoint()
        exported = session.export()
        cursors = session.cursors()
        session.close()
    if world.rank > 0:
        return {}
    end = keep_position(run, text.begin, steps * recipe.global_batch, cursors, text.identity)
    asked = steps * config.tokens_per_step
    return {
        "steps": steps,
        "tokens": session.position.tokens,
        "export": exported.relative_to(run.folder).as_posix(),
        "layout": asdict(layout),
        "flops": flops.training * session.position.tokens,
        "flops_per_token": flops.training,
        # Of a teacher that was asked ahead training takes none.
        "teacher_flops_per_token": flops.teacher if answers is None else 0.0,
        # What asking about all rows took, in this run or another.
        **({} if answers is None else {"answers": str(answers.folder), "answer_flops": asked * flops.teacher}),
        "seconds": sum(line["seconds"] for line in read_lines(folder / "metrics.jsonl")),
        "processes": world.size,
        "healed": read_healing(config, run),
        "rows": [text.begin.row, end],
        **_at_its_end(folder),
        "before": runs_before(config),
        "lengthened": earlier_ends(run),
    }


def _at_its_end(folder: Path) -> dict[str, Any]:
    """What held-out rows were worth at the last look (AT_ITS_END); None of what was never asked."""
    last = (read_lines(folder / "held_out.jsonl") or [{}])[-1]
    return dict(
        zip(AT_ITS_END, (last.get(key) for key in ("held_out_perplexity", "held_out_stderr", "rows")), strict=True)
    )


def _go_on(config: Config, session: Session, stop: Stop, watchdog: Watchdog) -> None:
    """From where the session stands to the last step. Stopped, behind one checkpoint, where it was asked to stop."""
    recipe = config.train
    bad_steps = BadSteps(recipe.bad_steps, recipe.spike, recipe.spike_window)
    rate = partial(rate_at, config)
    try:
        stop.look()
        # Before the first step; and what was given up when the run stopped at a step.
        _judge(config, session, stop)
        for step in session.steps(config.steps, rate, bad_steps, watchdog, log_samples=recipe.log_samples):
            if session.position.asked:
                raise Stopped
            # Evaluation and export come first: a resume at the checkpoint would not make them again.
            judged = _judge(config, session, stop)
            due = step.step == config.steps or step.step % recipe.checkpoint_every == 0
            if due:
                session.checkpoint()
            if judged or due:
                # Who was asked meanwhile does not wait for another step.
                stop.look()
    except Stopped:
        begin, due = time.monotonic(), session.position.step > session.saved
        if due:
            session.checkpoint()
        session.await_checkpoint()
        stop.saved = round(time.monotonic() - begin, 3) if due else None
        raise
    except Exception:
        session.leave()
        raise


def _judge(config: Config, session: Session, stop: Stop) -> bool:
    """What is due where the session stands, but for the checkpoint: of that what is not done yet. Whether anything was
    due."""
    recipe, during, step = config.train, config.evaluate.during.every, session.position.step
    last = step == config.steps
    evaluate = last or step % recipe.evaluate_every == 0
    ask = bool(during) and (last or step % during == 0)
    export = bool(recipe.export_every) and 0 < step < config.steps and step % recipe.export_every == 0
    if evaluate:
        session.evaluate(stop.look)
    if ask:
        session.ask_tasks(stop.look)
    if export and not session.exported:
        session.export()
    return evaluate or ask or export


def require_recipe(config: Config) -> None:
    """RegrowError on a recipe that cannot be carried out, whatever the model and the place."""
    if config.model.dtype == "float16":
        raise RegrowError(
            "model.dtype float16: training would need loss scaling, which is not here; take bfloat16 or float32"
        )
    warm, steps = config.train.warmup_steps, config.steps
    if warm is not None and warm >= steps:
        raise RegrowError(f"train.warmup_steps {warm}: the run has {steps} steps; set fewer, or more train.tokens")


def check(ahead: Ahead) -> list[str]:
    """Whether the batch and the lanes divide among the processes, where training begins, and whether a step is larger
    than the budget."""
    config = ahead.config
    processes = training_processes(config, ahead.place)
    # Where it is to be found, one row is the least.
    rows = 1 if config.train.micro_batch == "auto" else config.train.micro_batch
    accumulation(config.train.global_batch, rows, processes)
    lanes = known_lanes(config)
    if lanes is not None:
        fitting_workers(0, lanes, processes)
    require_recipe(config)
    if config.train.method == "lora" and ahead.model is not None:
        find_targets(ahead.model, config.train.lora.targets)
    asked = require_during(config, ahead.elsewhere)
    check_heal(config, ahead.model)
    lines = [*check_origin(config, ahead.encoder, ahead.elsewhere), *check_before(config, ahead.elsewhere)]
    dealt = lanes_ahead(config, processes) if ahead.elsewhere else []
    boards = [] if ahead.elsewhere else look_at_boards(config)
    return [
        *dealt,
        *boards,
        *asked,
        *lines,
        *check_teacher(config, ahead.encoder, ahead.elsewhere),
        *one_large_step(config),
    ]


def inputs(config: Config, run: Run) -> dict[str, str]:
    """Beyond the outputs of data and prune: models that were not made here, and where another run's rows ended."""
    found = (hashes(config, run) for hashes in (origin_hashes, teacher_hashes, healing_hashes, position_hashes))
    return {name: value for part in found for name, value in part.items()}


STAGE = Stage(
    "train",
    upstream=("data", "prune"),
    format=6,
    readable=2,
    work=work,
    inputs=inputs,
    launched=lambda config: True,
    check=check,
)
