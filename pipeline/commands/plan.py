"""What a config will cost, before anything is fetched or trained: blocks, FLOPs, memory, hours, disk.

Neither a GPU nor weights nor a network are needed: the model's config.json is enough. What else is on this machine is
checked as at the start of a run. Which blocks go is unknown before scoring, so the counts are exact where all blocks
have one size, and a bound (which the plan says) elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.checks import check_here, check_lengths
from pipeline.commands.plan_corpus import corpus_tokens, look_at_corpus
from pipeline.commands.plan_disk import disk_needs, disks
from pipeline.commands.plan_parts import parts_of_run
from pipeline.commands.plan_scoring import scoring_memory
from pipeline.commands.plan_time import BANDWIDTH, BLOCK_SECONDS, Chip, timed
from pipeline.commands.plan_training import config_folder, healing_lines, planned_teacher, teacher_lines, training_flops
from pipeline.config import STAGES, Config
from pipeline.cuts import read_cut
from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError
from pipeline.files import of_bytes
from pipeline.launch import Place, count_processes
from pipeline.loading import dispatch_note
from pipeline.model.costs import Trained, accumulation, memory_per_gpu, peak_flops
from pipeline.model.describe import Sizes, as_trained, describe_folder
from pipeline.model.loss import computes_router_loss, describe_router_loss
from pipeline.origins import lora_of
from pipeline.stages.longer import would_go_on
from pipeline.stages.opening import to_fit
from pipeline.stages.stage import Ahead, load_stage
from pipeline.stages.taking import would_take
from pipeline.stages.teaching import teacher_bytes
from pipeline.training.fitting import Fit, ToFit

#: The GPU that hours are given for, as torch names it, and its memory in bytes.
GPU, GPU_BYTES = "NVIDIA H100 80GB HBM3", 80e9
#: Its FLOP/s in dense products of bf16.
PEAK = peak_flops(GPU)

#: A careful run, a good one, and the highest bf16 figure that public codebases report.
MFUS = (0.30, 0.43, 0.50)


def plan(config: Config, stages: Sequence[str] = STAGES, price: float | None = None) -> dict[str, Any]:
    """The plan as plain values (JSON-ready), with ``notes`` for the reader and what was ``not_checked``.

    ``stages`` are those that the run will carry out; ``price`` is in dollars for an hour of a GPU. Raises RegrowError
    when the model's config.json cannot be found here, when weights, tokenizer or text that are here are not as they
    must be, when the run's folder cannot be written, and on all that a stage refuses before it starts.
    """
    source = find_architecture(config)
    model = describe_folder(source.parent, config.model.trust_remote_code)
    sizes, train = Sizes.of(model), config.train
    removed = read_cut(config).planned(sizes)
    # A number is planned for wherever this is; auto is what a run takes here.
    processes = train.processes if isinstance(train.processes, int) else count_processes("auto")
    encoder, notes, not_checked = _asked_of_stages(config, stages, processes, model, source.parent)
    teacher = planned_teacher(config, source.parent)
    trained = as_trained(model, config.model.dtype, removed, lora_of(config))
    wanted = to_fit(config, trained, processes, teacher_bytes(config, teacher, processes))
    per_token = training_flops(config, model, trained, removed, teacher)
    fit = _planned_fit(config, wanted)
    memory, total = _memory(wanted, fit), per_token * config.steps * config.tokens_per_step
    scoring = scoring_memory(config, model, sizes, len(removed), GPU_BYTES)
    corpus = look_at_corpus(config, encoder)
    states = scoring["states"] if scoring["loop"] == "block-major" else 0
    found = disks(
        disk_needs(config, model, trained, sum(removed), source.parent, states, corpus_tokens(corpus, config)),
        config.run_folder,
    )
    parts, missing = parts_of_run(config, model, removed, teacher, total, processes)
    notes += teacher_lines(config, teacher, processes)
    both = 2 * sizes.whole - sum(removed)
    notes += healing_lines(config, model.config.get_text_config().hidden_size, both, processes)
    notes += _notes(config, model, sizes, memory[train.zero_stage]["total"])
    notes += missing if "evaluate" in stages else []
    return {
        "run": config.run.name,
        "model": {"path": config.model.path, "architecture": str(source)},
        **_shape(sizes, removed, trained, train.method),
        "training": _training(config, fit, processes),
        "flops": {"convention": "palm", "per_token": per_token, "total": total},
        "scoring": scoring,
        "memory": memory,
        "gpu": {"name": GPU, "peak_flops": PEAK, "bandwidth": BANDWIDTH, "block_seconds": BLOCK_SECONDS},
        "price": price,
        "time": [_time(share, per_token, total, processes, price) for share in MFUS],
        "whole": timed([one for one in parts if one.stage in stages], planned_chip(), processes, price),
        "disks": found,
        "corpus": corpus,
        "notes": notes,
        "not_checked": not_checked,
    }


def planned_chip() -> Chip:
    """The GPU that hours are given for, in a good run."""
    return Chip(MFUS[1] * PEAK, BANDWIDTH, BLOCK_SECONDS)


def _shape(sizes: Sizes, removed: Sequence[int], trained: Trained, method: str) -> dict[str, Any]:
    """``blocks`` and ``parameters`` of the dense model and of the pruned one."""
    whole = {"dense": sizes.whole, "pruned": sizes.whole - sum(removed), "trained": trained.parameters}
    return {
        "blocks": {
            "dense": len(sizes.blocks),
            "removed": len(removed),
            "pruned": len(sizes.blocks) - len(removed),
            "uniform": len(set(sizes.blocks)) == 1,
        },
        "parameters": whole | ({"adapters": trained.parameters} if method == "lora" else {}),
    }


def _training(config: Config, fit: Fit, processes: int) -> dict[str, Any]:
    """The steps of training and how they are divided."""
    train = config.train
    return {
        "tokens": train.tokens,
        "row_length": config.data.row_length,
        "global_batch": train.global_batch,
        "micro_batch": fit.micro_batch,
        "gradient_checkpointing": fit.gradient_checkpointing,
        "accumulation": accumulation(train.global_batch, fit.micro_batch, processes),
        "processes": processes,
        "tokens_per_step": config.tokens_per_step,
        "steps": config.steps,
        "zero_stage": train.zero_stage,
    }


def _time(share: float, per_token: float, total: float, processes: int, price: float | None) -> dict[str, Any]:
    """Training at a share of the peak; ``dollars`` at ``price`` an hour of a GPU, None without one."""
    seconds = total / (share * PEAK)
    return {
        "mfu": share,
        "tokens_per_second_per_gpu": share * PEAK / per_token,
        "gpu_hours": seconds / 3600,
        "days": seconds / 86400 / processes,
        "dollars": None if price is None else seconds / 3600 * price,
    }


def _planned_fit(config: Config, wanted: ToFit) -> Fit:
    """What the config says of the micro-batch, or what is planned to fit on the GPU that hours are given for."""
    train = config.train
    if train.micro_batch != "auto":
        return Fit(train.micro_batch, train.gradient_checkpointing)
    found = next(wanted.fits(GPU_BYTES), None)
    if found is None:
        raise RegrowError(
            f"train.micro_batch auto: at train.zero_stage {train.zero_stage} on {wanted.processes} GPUs not one row is "
            f"planned to fit into {of_bytes(int(GPU_BYTES))}; raise the stage, or plan for more GPUs"
        )
    return found


def _asked_of_stages(
    config: Config, stages: Sequence[str], processes: int, model: PreTrainedModel, folder: Path
) -> tuple[Encoder | None, list[str], list[str]]:
    """What the checks of the run's start say of it: the encoder of its documents, None where the tokenizer is not on
    this machine, notes, and what else is not."""
    encoder, not_checked = check_here(config, model, folder)
    place = Place(world=processes, local_world=processes, launcher="other")
    ahead = Ahead(config, place, frozenset(stages), encoder, model, elsewhere=True)
    lines = {stage: load_stage(stage).check(ahead) for stage in stages}
    lines["run.from"] = list(would_take(stages, config))
    lines["more tokens"] = would_go_on(config)
    # Stage data says which sources it cannot look at yet.
    not_checked += lines.pop("data", [])
    return encoder, [line for stage in lines.values() for line in stage], not_checked


def _memory(wanted: ToFit, fit: Fit) -> list[dict[str, int]]:
    """What training takes on one GPU, in bytes, for each ZeRO stage."""
    shape = (wanted.processes, fit.micro_batch, wanted.row_length)
    kind = fit.gradient_checkpointing
    return [
        {
            "zero_stage": stage,
            **memory_per_gpu(wanted.trained, stage, *shape, gradient_checkpointing=kind),
        }
        for stage in range(4)
    ]


def _notes(config: Config, model: nn.Module, sizes: Sizes, needed: int) -> list[str]:
    """What the reader should know of the plan; ``needed`` are the bytes that training takes on one GPU."""
    train, notes = config.train, []
    named = config.prune.blocks if isinstance(config.prune.blocks, tuple) else ()
    if len(set(sizes.blocks)) > 1 and not named:
        notes.append(
            f"blocks differ in size ({min(sizes.blocks):,} to {max(sizes.blocks):,} parameters): the pruned model's "
            "counts are upper bounds, as if the smallest went"
        )
    if sentence := describe_router_loss(model, computes_router_loss(model), named):
        notes.append(sentence)
    if config.prune.perplexity is not None:
        notes.append("prune.perplexity decides how many blocks go when they are pruned: planned here as if none went")
    if train.processes == "auto" and not torch.cuda.device_count():
        notes.append(
            "train.processes is auto and this machine has no GPU: planned for one process, as a run starts here; "
            "train.processes=8 plans for 8 GPUs"
        )
    notes += check_lengths(config, model) + dispatch_note(config, model, GPU_BYTES)
    if config.model.attention == "eager":
        notes.append("model.attention eager stores T x T matrices, which the activations here leave out")
    if train.micro_batch == "auto":
        notes.append(
            f"train.micro_batch auto: what is planned to fit on {GPU}; a run tries it once on its own GPU, and keeps it"
        )
    if needed > 0.9 * GPU_BYTES:
        notes.append(
            f"train.zero_stage {train.zero_stage} needs about {needed / 1e9:.0f} GB of an 80 GB GPU, without CUDA's "
            "context and communication buckets: tight or too much; a higher stage, gradient checkpointing or a smaller "
            "micro-batch takes less"
        )
    return notes


def find_architecture(config: Config) -> Path:
    """The config.json to plan with: model.path's if it is a folder, else model.architecture's, else a cached one.

    Nothing is fetched. Raises RegrowError with the remedy when there is none.
    """
    model = config.model
    for folder in (Path(model.path), model.architecture):
        if folder is not None and (folder / "config.json").is_file():
            return folder / "config.json"
    if model.architecture is not None:
        raise RegrowError(f"model.architecture: {model.architecture} holds no config.json")
    if Path(model.path).is_dir():
        raise RegrowError(f"model.path: the folder {model.path} holds no config.json")
    try:
        cached = config_folder(model.path, model.revision)
    except ValueError:
        raise RegrowError(f"model.path: {model.path} is neither a folder here nor a model's name on the hub") from None
    if cached is not None:
        return cached / "config.json"
    raise RegrowError(
        f"model.path: {model.path} is not a folder here, and plan fetches nothing; set model.architecture to a folder "
        "with its config.json, or fetch the model first"
    )
