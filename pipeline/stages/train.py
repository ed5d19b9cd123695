"""Stage train: continued pretraining of the pruned model, with checkpoints, held-out losses and exports.

Killed anywhere and started again, it goes on at the newest complete checkpoint and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.checks import one_large_step
from pipeline.config import Config
from pipeline.data.remote.space import require_cache_space
from pipeline.data.stream.loader import fitting_workers
from pipeline.data.stream.position import check_identity
from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import perplexity
from pipeline.files import require_space
from pipeline.inputs import Inputs
from pipeline.launch import count_processes
from pipeline.life import Teller
from pipeline.model.attention import require_document_attention
from pipeline.model.costs import accumulation, mfu, model_flops_per_token, peak_flops
from pipeline.run import Run
from pipeline.stages.stage import Ahead, Stage
from pipeline.training.checkpoint import Layout, checkpoint_bytes, clear_torn, newest_checkpoint
from pipeline.training.determinism import deterministic
from pipeline.training.engine import Engine
from pipeline.training.export import Origin
from pipeline.training.metrics import read_lines
from pipeline.training.optimisation import Optimisation
from pipeline.training.schedule import learning_rate
from pipeline.training.session import Rows, Session
from pipeline.training.trained import told_of
from pipeline.world import World


def work(config: Config, run: Run, world: World, say: Teller) -> dict[str, Any]:
    """Train to the token budget; write train/metrics.jsonl, held_out.jsonl, checkpoints/ and exports/."""
    folder, recipe, steps = run.stage("train"), config.train, config.steps
    text = Inputs(config, run, run.stage("prune") / "model")
    layout = Layout.of(world, recipe, config.model.dtype)
    # Found and checked by one process for all: a damaged file, or another layout, ends the stage before it begins.
    found = world.on_first(lambda: newest_checkpoint(folder / "checkpoints", layout))
    if found:
        check_identity(found[1]["identity"], text.identity)
    torch.manual_seed(recipe.seed)
    wanted = world.device.type == "cpu" if recipe.deterministic == "auto" else recipe.deterministic
    with deterministic(wanted):
        session, flops = _open(config, run, text, layout, world, say)
        session.resume(found)
        if found:
            say(f"resuming at step {session.position.step} of {steps}")
        if session.position.step == 0:
            session.evaluate()
        for step in session.steps(steps, partial(_rate, config), recipe.log_samples):
            last = step.step == steps
            # Evaluation and export come first: a resume at the checkpoint would not make them again.
            if last or step.step % recipe.evaluate_every == 0:
                session.evaluate()
            if not last and recipe.export_every and step.step % recipe.export_every == 0:
                session.export()
            if last or step.step % recipe.checkpoint_every == 0:
                session.checkpoint(recipe.keep_checkpoints)
        exported = session.export()
        session.engine.close()
    lines = read_lines(folder / "metrics.jsonl") if world.rank == 0 else []
    return {
        "steps": steps,
        "tokens": session.position.tokens,
        "export": exported.relative_to(run.folder).as_posix(),
        "layout": asdict(layout),
        "flops": flops * session.position.tokens,
        "flops_per_token": flops,
        "seconds": sum(line["seconds"] for line in lines),
        "processes": world.size,
    }


def _open(config: Config, run: Run, text: Inputs, layout: Layout, world: World, say: Teller) -> tuple[Session, float]:
    """The session at its start, and the FLOPs of a token, once all that it needs is known to be there."""
    folder, data, recipe = run.stage("train"), config.data, config.train
    origin = Origin(text.model, config.model.dtype, config.model.trust_remote_code)
    model = origin.load(attention=config.model.attention, device=world.device)
    flops = model_flops_per_token(model, data.row_length)
    peak = peak_flops(torch.cuda.get_device_name(world.device)) if world.device.type == "cuda" else None
    if data.attention == "within":
        world.on_first(lambda: require_document_attention(model))
    world.on_first(lambda: _require_room(config, run, text, model, world))
    held_out = world.on_first(lambda: text.held_out_rows(data.row_length, "document", recipe.evaluate_rows))
    rows = Rows(
        text.identity,
        text.shard_names,
        lambda behind: text.stream(step=behind.step, cursors=behind.cursors, rank=world.rank, processes=world.size),
        _workers(config, world, say),
        within_documents=data.attention == "within",
    )
    engine = _engine(config, model, world, layout)
    for line in told_of(engine.model, engine.unreached, engine.narrowed, engine.router_coefficient, engine.head):
        say(line)

    def judge(engine: Engine) -> dict[str, Any]:
        return perplexity(
            engine.engine,
            held_out,
            micro_batch=recipe.micro_batch,
            device=world.device,
            head=engine.head,
            world=world,
        )

    session = Session(
        engine,
        rows,
        folder,
        origin,
        layout,
        judge=None if held_out is None else judge,
        mfu=lambda speed: mfu(speed / world.size, flops, peak),
        say=say,
    )
    return session, flops


def _engine(config: Config, model: PreTrainedModel, world: World, layout: Layout) -> Engine:
    recipe = config.train
    return Engine(
        model,
        world,
        Optimisation(recipe.learning_rate, recipe.betas, recipe.eps, recipe.weight_decay, recipe.no_decay, recipe.clip),
        micro_batch=recipe.micro_batch,
        accumulation=accumulation(recipe.global_batch, recipe.micro_batch, world.size),
        zero_stage=recipe.zero_stage,
        gradient_checkpointing=recipe.gradient_checkpointing,
        compile_blocks=layout.compiled,
    )


def _rate(config: Config, step: int) -> float:
    recipe = config.train
    return learning_rate(
        step,
        steps=config.steps,
        peak=recipe.learning_rate,
        final=recipe.final_learning_rate,
        warmup=recipe.warmup,
        schedule=recipe.schedule,
        decay=recipe.decay,
    )


def _require_room(config: Config, run: Run, text: Inputs, model: PreTrainedModel, world: World) -> None:
    """RegrowError where there is no room for a checkpoint and the last export, or on this machine for the remote shards
    that its lanes read at a time: before the first hour is paid for."""
    folder, data, parameters = run.stage("train"), config.data, model.num_parameters()
    clear_torn(folder / "checkpoints")
    needed = checkpoint_bytes(parameters, config.train.zero_stage, model.dtype) + parameters * model.dtype.itemsize
    require_space(folder, needed, "a checkpoint and the export")
    own = -(-data.lanes * world.on_this_machine // world.size)
    require_cache_space(data.cache, text.corpus, own, data.cache_size)


def _workers(config: Config, world: World, say: Callable[[str], None]) -> int:
    """Reader processes: as many as the config wants, or the next lower number that divides the lanes."""
    wanted, lanes = config.data.workers, config.data.lanes
    workers = fitting_workers(wanted, lanes, world.size)
    if workers != wanted:
        say(f"{workers} workers for each process instead of {wanted}: they must divide {lanes} lanes")
    return workers


def check(ahead: Ahead) -> list[str]:
    """Whether the batch and the lanes divide among the processes, and whether a step is larger than the budget."""
    config = ahead.config
    processes = ahead.place.world if ahead.place.launcher else count_processes(config.train.processes)
    accumulation(config.train.global_batch, config.train.micro_batch, processes)
    fitting_workers(config.data.workers, config.data.lanes, processes)
    if config.model.dtype == "float16":
        raise RegrowError(
            "model.dtype float16: training would need loss scaling, which is not here; take bfloat16 or float32"
        )
    return one_large_step(config)


STAGE = Stage(
    "train",
    upstream=("data", "prune"),
    format=5,
    work=work,
    # Nothing beyond the outputs of data and prune.
    inputs=lambda config, run: {},
    launched=lambda config: True,
    check=check,
)
