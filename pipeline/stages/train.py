"""Stage train: continued pretraining of the pruned model, with checkpoints, held-out losses and exports.

Killed anywhere and started again, it goes on at the newest complete checkpoint and ends in the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.lanes import Cursor
from pipeline.data.loader import RowStream, fitting_workers, load_rows
from pipeline.data.samples import held_out_rows
from pipeline.data.shards import read_manifest
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.evaluation.perplexity import perplexity
from pipeline.launch import World, die_with_parent
from pipeline.model.costs import accumulation, attention_width, flops_per_token, mfu, peak_flops, product_parameters
from pipeline.model.load import copy_companions, load_model
from pipeline.run import RegrowError, Run, read_json, require_space
from pipeline.training.checkpoint import (
    checkpoint_bytes,
    clear_torn,
    folder_of,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from pipeline.training.engine import Engine
from pipeline.training.loop import Position, train_steps
from pipeline.training.metrics import append_line, cut_after, read_lines
from pipeline.training.schedule import learning_rate

FORMAT = 1
UPSTREAM = ("data", "prune")
LAUNCHED = True


def inputs(config: Config, run: Run) -> dict[str, str]:
    """Nothing beyond the outputs of data and prune."""
    return {}


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Train to the token budget; write train/metrics.jsonl, held_out.jsonl, checkpoints/ and exports/."""
    folder, recipe, row_length = run.stage("train"), config.train, config.data.row_length
    steps = -(-recipe.tokens // (recipe.global_batch * row_length))
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
    found = world.from_first(newest_checkpoint(folder / "checkpoints", layout) if world.rank == 0 else None)
    torch.manual_seed(recipe.seed)
    if recipe.deterministic is True or (recipe.deterministic == "auto" and world.device.type == "cpu"):
        torch.use_deterministic_algorithms(True)
        # It would also fill every new buffer, which DeepSpeed overwrites: for each micro-batch, all its buckets.
        torch.utils.deterministic.fill_uninitialized_memory = False

    model = load_model(
        run.stage("prune") / "model", dtype=config.model.dtype, attention=config.model.attention, device=world.device,
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip
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
    _on_first(world, lambda: require_space(folder, needed, "a checkpoint and the export"))
    rows = _held_out(config, run, world)
    engine = Engine(
        model, world, micro_batch=recipe.micro_batch, accumulation=split, zero_stage=recipe.zero_stage,
        learning_rate=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay,
        no_decay=recipe.no_decay, clip=recipe.clip, gradient_checkpointing=recipe.gradient_checkpointing,
    )  # fmt: skip

    position = Position()
    if found:
        checkpoint, state = found
        load_checkpoint(checkpoint, engine, world)
        # Its own lanes alone: the cursors of others would be kept as they are now, and the next checkpoint would mix
        # them with what the others have moved on to.
        cursors = {
            int(lane): Cursor(**cursor)
            for lane, cursor in state["cursors"].items()
            if int(lane) % world.size == world.rank
        }
        position = Position(state["step"], state["tokens"], cursors)
        say(f"resuming at step {position.step} of {steps}")
    if world.rank == 0:
        cut = [cut_after(folder / name, position.step) for name in ("metrics.jsonl", "held_out.jsonl")]
        say(f"{cut[0]} steps behind the checkpoint are done again") if cut[0] else None

    def evaluate() -> None:
        """Held-out loss of the weights as they are, into held_out.jsonl."""
        known = rows is None or (world.rank == 0 and _has(folder / "held_out.jsonl", position.step))
        if world.from_first(known):
            return
        with engine.precision():
            result = perplexity(
                engine.engine, rows, micro_batch=recipe.micro_batch, device=world.device, rank=world.rank,
                world=world.size, group=world.control,
            )  # fmt: skip
        if world.rank == 0:
            append_line(folder / "held_out.jsonl", {
                "step": position.step, "tokens": position.tokens, "held_out_loss": result["loss"],
                "held_out_perplexity": result["value"], "rows": result["rows"],
            })  # fmt: skip
            say(f"step {position.step}: held-out perplexity {result['value']:.2f}")

    def checkpoint_now() -> None:
        cursors = {lane: asdict(cursor) for share in world.gather(position.cursors) for lane, cursor in share.items()}
        state = {"step": position.step, "tokens": position.tokens, "layout": layout, "cursors": cursors}
        save_checkpoint(
            folder / "checkpoints", engine, world, step=position.step, state=state, keep=recipe.keep_checkpoints,
            parameters=parameters,
        )  # fmt: skip

    if position.step == 0:
        evaluate()
    stream = _rows(config, run, world, position, say)
    for step in train_steps(
        engine, stream, world, position, steps=steps, micro_batch=recipe.micro_batch,
        rate=lambda number: learning_rate(
            number, steps=steps, peak=recipe.learning_rate, final=recipe.final_learning_rate, warmup=recipe.warmup,
            schedule=recipe.schedule, decay=recipe.decay,
        ),
        mfu=lambda speed: mfu(speed / world.size, flops, peak),
    ):  # fmt: skip
        if world.rank == 0:
            append_line(folder / "metrics.jsonl", asdict(step))
            left = (steps - step.step) * step.seconds
            say(f"step {step.step} of {steps}: loss {step.loss:.4f}, gradient norm {step.grad_norm:.2f}, rate "
                f"{step.learning_rate:.2e}, {step.tokens_per_second:,.0f} tokens/s, {_clock(left)} left")  # fmt: skip
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
        "steps": steps, "tokens": position.tokens, "export": exported.relative_to(run.folder).as_posix(),
        "layout": layout, "flops": flops * position.tokens, "flops_per_token": flops,
        "seconds_in_steps": sum(line["seconds"] for line in lines), "processes": world.size,
    }  # fmt: skip


def _rows(config: Config, run: Run, world: World, position: Position, say: Callable[[str], None]) -> Any:
    """This process's training rows behind ``position``."""
    data = config.data
    corpus, _ = read_manifest(read_json(run.stage("data") / "manifest.json"))
    tokenizer = load_tokenizer(run.stage("prune") / "model", config.model.trust_remote_code)
    stream = RowStream(
        corpus, encode=make_encoder(tokenizer, data.separator), lanes=data.lanes, row_length=data.row_length,
        seed=data.seed, cache=data.cache, rank=world.rank, world=world.size,
        start=position.step * config.train.global_batch, cursors=position.cursors,
    )  # fmt: skip
    workers = fitting_workers(data.workers, data.lanes, world.size)
    if workers != data.workers:
        say(f"{workers} workers for each process instead of {data.workers}: they must divide {data.lanes} lanes")
    return load_rows(stream, workers, die_with_parent)


def _held_out(config: Config, run: Run, world: World) -> torch.Tensor | None:
    """The rows that the loop evaluates, (rows, row_length) int64; None when the config holds nothing out."""
    _, shards = read_manifest(read_json(run.stage("data") / "manifest.json"))
    if not shards:
        return None
    rows = None
    if world.rank == 0:
        tokenizer = load_tokenizer(run.stage("prune") / "model", config.model.trust_remote_code)
        rows = held_out_rows(
            shards, make_encoder(tokenizer, config.data.separator), length=config.data.row_length, bos="document",
            rows=config.train.evaluate_rows, cache=config.data.cache,
        )  # fmt: skip
    return world.from_first(rows)


def _export(run: Run, engine: Engine, world: World, step: int, config: Config) -> Path:
    """The weights as a plain Hugging Face folder, written beside and moved into place: whole or absent."""
    target = folder_of(run.stage("train") / "exports", step)
    weights = engine.weights()
    if world.rank == 0:
        scratch = target.with_name(f".{target.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        require_space(target.parent, sum(value.nbytes for value in weights.values()), f"export {step}")
        model = load_model(run.stage("prune") / "model", dtype=config.model.dtype,
                           trust_remote_code=config.model.trust_remote_code)  # fmt: skip
        model.load_state_dict(weights)
        model.save_pretrained(scratch)
        copy_companions(run.stage("prune") / "model", scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    world.barrier()
    return target


def _on_first(world: World, check: Callable[[], None]) -> None:
    """Run a check on rank 0 and raise what it raises on every process."""
    problem = None
    if world.rank == 0:
        try:
            check()
        except RegrowError as error:
            problem = str(error)
    problem = world.from_first(problem)
    if problem:
        raise RegrowError(problem)


def _has(path: Path, step: int) -> bool:
    return any(line["step"] == step for line in read_lines(path))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
