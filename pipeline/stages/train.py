"""Stage train: continued pretraining of the pruned model, with checkpoints, held-out losses and exports.

Killed anywhere and started again, it goes on at the newest complete checkpoint and ends in the same bytes.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.checks import one_large_step
from pipeline.config import Config
from pipeline.data.remote.space import require_cache_space
from pipeline.data.stream.loader import fitting_workers, load_rows
from pipeline.data.stream.position import check_identity, from_json, skipped_parts, to_json
from pipeline.evaluation.perplexity import perplexity
from pipeline.inputs import Inputs
from pipeline.launch import count_processes, die_with_parent
from pipeline.model.attention import require_document_attention
from pipeline.model.costs import accumulation, attention_width, flops_per_token, mfu, peak_flops, product_parameters
from pipeline.model.load import copy_companions, load_model
from pipeline.model.loss import computes_router_loss, describe_router_loss, router_coefficient
from pipeline.run import RegrowError, Run, require_space
from pipeline.stages.stage import Ahead, Stage
from pipeline.training.checkpoint import (
    checkpoint_bytes,
    clear_torn,
    folder_of,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from pipeline.training.engine import Engine
from pipeline.training.loop import Position, Sample, Step, train_steps
from pipeline.training.metrics import WINDOW, append_line, cut_after, pace, read_lines
from pipeline.training.reach import describe_unreached
from pipeline.training.schedule import learning_rate
from pipeline.world import World

#: How many of the tensors that are trained in less precision a line names.
NAMED = 3


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Train to the token budget; write train/metrics.jsonl, held_out.jsonl, checkpoints/ and exports/."""
    folder, recipe, row_length, steps = run.stage("train"), config.train, config.data.row_length, config.steps
    text = Inputs(config, run, run.stage("prune") / "model")
    split = accumulation(recipe.global_batch, recipe.micro_batch, world.size)
    layout = {
        "processes": world.size,
        "micro_batch": recipe.micro_batch,
        "zero_stage": recipe.zero_stage,
        # Sums on a CPU depend on the number of threads; on a GPU they do not, and nodes differ in cores.
        "threads": world.threads if world.device.type == "cpu" else None,
        "dtype": config.model.dtype,
        "device": world.device.type,
    }
    # Found and checked by one process for all: a damaged file, or another layout, ends the stage before it begins.
    found = world.on_first(lambda: newest_checkpoint(folder / "checkpoints", layout))
    if found:
        check_identity(found[1]["identity"], text.identity)
    torch.manual_seed(recipe.seed)
    if recipe.deterministic is True or (recipe.deterministic == "auto" and world.device.type == "cpu"):
        torch.use_deterministic_algorithms(True)
        # It would also fill every new buffer, which DeepSpeed overwrites: for each micro-batch, all its buckets.
        torch.utils.deterministic.fill_uninitialized_memory = False

    model = load_model(
        run.stage("prune") / "model",
        dtype=config.model.dtype,
        attention=config.model.attention,
        device=world.device,
        trust_remote_code=config.model.trust_remote_code,
    )
    within = config.data.attention == "within"
    if within:
        world.on_first(lambda: require_document_attention(model))
    parameters = model.num_parameters()
    text_config = model.config.get_text_config()
    flops = flops_per_token(
        product_parameters(model), text_config.num_hidden_layers, attention_width(text_config), row_length
    )
    peak = peak_flops(torch.cuda.get_device_name(world.device)) if world.device.type == "cuda" else None
    # Enough for one checkpoint and the last export, before the first hour is paid for.
    needed = checkpoint_bytes(parameters, recipe.zero_stage, model.dtype) + parameters * model.dtype.itemsize
    if world.rank == 0:
        clear_torn(folder / "checkpoints")
    world.on_first(lambda: require_space(folder, needed, "a checkpoint and the export"))
    world.on_first(lambda: _require_cache(text, world))
    rows = world.on_first(lambda: text.held_out_rows(row_length, "document", recipe.evaluate_rows))
    engine = Engine(
        model,
        world,
        micro_batch=recipe.micro_batch,
        accumulation=split,
        zero_stage=recipe.zero_stage,
        learning_rate=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        no_decay=recipe.no_decay,
        clip=recipe.clip,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )

    for line in told_of(engine.model, engine.unreached, engine.narrowed, engine.router_coefficient):
        say(line)
    position = Position()
    if found:
        checkpoint, state = found
        load_checkpoint(checkpoint, engine, world)
        # Its own lanes alone: the cursors of others would be kept as they are now, and the next checkpoint would mix
        # them with what the others have moved on to.
        lanes = from_json(state["lanes"])
        cursors = {lane: cursor for lane, cursor in lanes.items() if lane % world.size == world.rank}
        position = Position(state["step"], state["tokens"], cursors)
        say(f"resuming at step {position.step} of {steps}")
    if world.rank == 0:
        names = ("metrics.jsonl", "held_out.jsonl", "samples.jsonl")
        cut = [cut_after(folder / name, position.step) for name in names]
        say(f"{cut[0]} steps behind the checkpoint are done again") if cut[0] else None

    def evaluate() -> None:
        """Held-out loss of the weights as they are, into held_out.jsonl."""
        known = rows is None or (world.rank == 0 and _has(folder / "held_out.jsonl", position.step))
        if world.broadcast(known):
            return
        with engine.precision():
            result = perplexity(engine.engine, rows, micro_batch=recipe.micro_batch, device=world.device, world=world)
        if world.rank == 0:
            append_line(
                folder / "held_out.jsonl",
                {
                    "step": position.step,
                    "tokens": position.tokens,
                    "held_out_loss": result["loss"],
                    "held_out_perplexity": result["value"],
                    "rows": result["rows"],
                },
            )
            say(f"step {position.step}: held-out perplexity {result['value']:.2f}")

    def log_samples(step: int, samples: list[Sample]) -> None:
        """What a step was trained on, row by row in their order, into samples.jsonl."""
        rows = sorted((sample for share in world.gather(samples) for sample in share), key=lambda row: row.index)
        if world.rank == 0:
            append_line(folder / "samples.jsonl", {"step": step, "rows": [list(astuple(row)) for row in rows]})

    shards, left_out = text.shard_names, set()

    def checkpoint_now() -> None:
        cursors = {lane: cursor for share in world.gather(position.cursors) for lane, cursor in share.items()}
        for line in skipped_parts(cursors, shards):
            if line not in left_out:
                left_out.add(line)
                say(line)
        state = {
            "step": position.step,
            "tokens": position.tokens,
            "layout": layout,
            "identity": asdict(text.identity),
            "lanes": to_json(cursors),
        }
        save_checkpoint(
            folder / "checkpoints",
            engine,
            world,
            step=position.step,
            state=state,
            keep=recipe.keep_checkpoints,
            parameters=parameters,
        )

    recent = deque(read_lines(folder / "metrics.jsonl") if world.rank == 0 else [], maxlen=WINDOW)
    if position.step == 0:
        evaluate()
    stream = text.stream(step=position.step, cursors=position.cursors, rank=world.rank, world=world.size)
    workers = fitting_workers(config.data.workers, config.data.lanes, world.size)
    if workers != config.data.workers:
        say(
            f"{workers} workers for each process instead of {config.data.workers}: they must divide "
            f"{config.data.lanes} lanes"
        )
    for step in train_steps(
        engine,
        load_rows(stream, workers, die_with_parent),
        world,
        position,
        steps=steps,
        micro_batch=recipe.micro_batch,
        within_documents=within,
        on_samples=log_samples if recipe.log_samples else None,
        rate=lambda number: learning_rate(
            number,
            steps=steps,
            peak=recipe.learning_rate,
            final=recipe.final_learning_rate,
            warmup=recipe.warmup,
            schedule=recipe.schedule,
            decay=recipe.decay,
        ),
        mfu=lambda speed: mfu(speed / world.size, flops, peak),
        say=say,
    ):
        if world.rank == 0:
            recent.append(_metrics(step))
            append_line(folder / "metrics.jsonl", recent[-1])
            say(f"{_step_line(step, steps)}, {_clock((steps - step.step) * pace(recent)[1])} left")
        last = step.step == steps
        # Evaluation and export come first: a resume at the checkpoint would not make them again.
        if last or step.step % recipe.evaluate_every == 0:
            evaluate()
        if not last and recipe.export_every and step.step % recipe.export_every == 0:
            _export(run, engine, world, step.step, config)
        if last or step.step % recipe.checkpoint_every == 0:
            checkpoint_now()
    exported = _export(run, engine, world, steps, config)
    lines = read_lines(folder / "metrics.jsonl") if world.rank == 0 else []
    return {
        "steps": steps,
        "tokens": position.tokens,
        "export": exported.relative_to(run.folder).as_posix(),
        "layout": layout,
        "flops": flops * position.tokens,
        "flops_per_token": flops,
        "seconds_in_steps": sum(line["seconds"] for line in lines),
        "processes": world.size,
    }


def _require_cache(text: Inputs, world: World) -> None:
    """RegrowError where this machine has no room for the remote shards that its lanes read at a time."""
    data = text.config.data
    own = -(-data.lanes * world.on_this_machine // world.size)
    require_cache_space(data.cache, text.corpus, own, data.cache_size)


def _export(run: Run, engine: Engine, world: World, step: int, config: Config) -> Path:
    """The weights as a plain Hugging Face folder, written beside and moved into place: whole or absent."""
    target = folder_of(run.stage("train") / "exports", step)
    weights = engine.weights()
    if world.rank == 0:
        scratch = target.with_name(f".{target.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        require_space(target.parent, sum(value.nbytes for value in weights.values()), f"export {step}")
        model = load_model(
            run.stage("prune") / "model", dtype=config.model.dtype, trust_remote_code=config.model.trust_remote_code
        )
        load_trained(model, weights, engine.unreached)
        model.save_pretrained(scratch)
        copy_companions(run.stage("prune") / "model", scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    world.barrier()
    return target


def load_trained(model: nn.Module, weights: Mapping[str, torch.Tensor], left_alone: Collection[str]) -> None:
    """Give the pruned ``model`` an engine's ``weights``, all but buffers and ``left_alone``: it keeps these bit for
    bit, which an engine may have rounded."""
    own = {*left_alone, *(name for name, _ in model.named_buffers())}
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in own}
    model.load_state_dict({**weights, **kept})


def told_of(
    model: nn.Module, left_alone: dict[str, nn.Parameter], narrowed: Sequence[str], coefficient: float | None
) -> Iterator[str]:
    """What a person should know of what is trained, and on which loss; the last three as an Engine has them."""
    if left_alone:
        yield describe_unreached(left_alone)
    if narrowed:
        more = ", ..." if len(narrowed) > NAMED else ""
        yield (
            f"{len(narrowed)} tensors that the pruned model keeps in float32 are trained in bfloat16, and exported "
            f"with its precision: {', '.join(narrowed[:NAMED])}{more}; train.zero_stage=0 trains them in float32"
        )
    asked = router_coefficient(model.config) is not None
    computed = coefficient is not None if asked else computes_router_loss(model)
    if sentence := describe_router_loss(model, computed):
        yield sentence


def _metrics(step: Step) -> dict[str, Any]:
    """A step's line in metrics.jsonl; the router's loss only where it is trained on."""
    return {key: value for key, value in asdict(step).items() if key != "auxiliary_loss" or value is not None}


def _step_line(step: Step, steps: int) -> str:
    router = "" if step.auxiliary_loss is None else f"router's auxiliary loss {step.auxiliary_loss:.4f}, "
    return (
        f"step {step.step} of {steps}: loss {step.loss:.4f}, {router}gradient norm {step.grad_norm:.2f}, rate "
        f"{step.learning_rate:.2e}, {step.tokens_per_second:,.0f} tokens/s"
    )


def _has(path: Path, step: int) -> bool:
    return any(line["step"] == step for line in read_lines(path))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


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
    format=3,
    work=work,
    # Nothing beyond the outputs of data and prune.
    inputs=lambda config, run: {},
    launched=lambda config: True,
    check=check,
)
