"""What a config will cost, before anything is fetched or trained: blocks, parameters, steps, FLOPs, memory, hours.

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
from pipeline.commands.plan_training import config_folder, healing_lines, planned_teacher, teacher_lines, training_flops
from pipeline.config import STAGES, Config
from pipeline.cuts import read_cut
from pipeline.errors import RegrowError
from pipeline.files import of_bytes
from pipeline.importance.block_major import ROOM
from pipeline.importance.criteria import NEEDS
from pipeline.importance.footprint import SweepShape
from pipeline.importance.ppl import windows_of
from pipeline.launch import Place, count_processes
from pipeline.loading import dispatch_note
from pipeline.model.costs import accumulation, memory_per_gpu, peak_flops
from pipeline.model.describe import Sizes, as_trained, describe_folder
from pipeline.model.loss import computes_router_loss, describe_router_loss
from pipeline.origins import lora_of
from pipeline.stages.opening import to_fit
from pipeline.stages.stage import Ahead, load_stage
from pipeline.stages.taking import would_take
from pipeline.stages.teaching import teacher_bytes
from pipeline.training.fitting import Fit, ToFit

#: The GPU that hours are given for, as torch names it, and its memory in bytes.
GPU, GPU_BYTES = "NVIDIA H100 80GB HBM3", 80e9

#: A careful run, a good one, and the highest bf16 figure that public codebases report.
MFUS = (0.30, 0.43, 0.50)


def plan(config: Config, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """The plan as plain values (JSON-ready), with ``notes`` for the reader and what was ``not_checked``.

    ``stages`` are those that the run will carry out. Raises RegrowError when the model's config.json cannot be found
    here, when weights, tokenizer or text that are here are not as they must be, when the run's folder cannot be
    written, and on all that a stage refuses before it starts.
    """
    source = find_architecture(config)
    model = describe_folder(source.parent, config.model.trust_remote_code)
    sizes, train, row = Sizes.of(model), config.train, config.data.row_length
    removed = read_cut(config).planned(sizes)
    gone, blocks = sum(removed), len(sizes.blocks) - len(removed)
    # A number is planned for wherever this is; auto is what a run takes here.
    processes = train.processes if isinstance(train.processes, int) else count_processes("auto")
    notes, not_checked = _asked_of_stages(config, stages, processes, model, source.parent)
    teacher = planned_teacher(config, source.parent)
    trained = as_trained(model, config.model.dtype, removed, lora_of(config))
    wanted = to_fit(config, trained, processes, teacher_bytes(config, teacher, processes))
    per_token = training_flops(config, model, trained, removed, teacher)
    fit = _planned_fit(config, wanted)
    memory = _memory(wanted, fit)
    peak, total = peak_flops(GPU) or 0.0, per_token * config.steps * config.tokens_per_step
    return {
        "run": config.run.name,
        "model": {"path": config.model.path, "architecture": str(source)},
        "blocks": {
            "dense": len(sizes.blocks),
            "removed": len(removed),
            "pruned": blocks,
            "uniform": len(set(sizes.blocks)) == 1,
        },
        "parameters": {"dense": sizes.whole, "pruned": sizes.whole - gone, "trained": trained.parameters}
        | ({"adapters": trained.parameters} if train.method == "lora" else {}),
        "training": {
            "tokens": train.tokens,
            "row_length": row,
            "global_batch": train.global_batch,
            "micro_batch": fit.micro_batch,
            "gradient_checkpointing": fit.gradient_checkpointing,
            "accumulation": accumulation(train.global_batch, fit.micro_batch, processes),
            "processes": processes,
            "tokens_per_step": config.tokens_per_step,
            "steps": config.steps,
            "zero_stage": train.zero_stage,
        },
        "flops": {"convention": "palm", "per_token": per_token, "total": total},
        "scoring": _scoring(config, model, sizes, len(removed)),
        "memory": memory,
        "gpu": {"name": GPU, "peak_flops": peak},
        "time": [
            {
                "mfu": share,
                "tokens_per_second_per_gpu": share * peak / per_token,
                "gpu_hours": total / (share * peak) / 3600,
                "days": total / (share * peak) / 86400 / processes,
            }
            for share in MFUS
        ],
        "notes": notes
        + teacher_lines(config, teacher, processes)
        + healing_lines(config, model.config.get_text_config().hidden_size, 2 * sizes.whole - gone, processes)
        + _notes(config, model, sizes, memory[train.zero_stage]["total"]),
        "not_checked": not_checked,
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
) -> tuple[list[str], list[str]]:
    """What the checks of the run's start say of it: notes, and what is not on this machine."""
    encoder, not_checked = check_here(config, model, folder)
    place = Place(world=processes, local_world=processes, launcher="other")
    ahead = Ahead(config, place, frozenset(stages), encoder, model, elsewhere=True)
    lines = {stage: load_stage(stage).check(ahead) for stage in stages}
    lines["run.from"] = list(would_take(stages, config))
    # Stage data says which sources it cannot look at yet.
    not_checked += lines.pop("data", [])
    return [line for stage in lines.values() for line in stage], not_checked


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


def _scoring(config: Config, model: nn.Module, sizes: Sizes, planned: int) -> dict[str, Any]:
    """What the sweep takes, in bytes, in both orders of its loops, and the order that ``auto`` takes on the GPU.

    ``planned``: blocks that will go, as far as is known.
    """
    score, hf_config = config.score, model.config.get_text_config()
    needs = {NEEDS[name] for name in score.criteria}
    size, total, inside = getattr(torch, score.dtype).itemsize, len(sizes.blocks), sum(sizes.blocks)
    shape = SweepShape(
        blocks=total,
        sequences=score.sequences,
        length=score.length,
        width=hf_config.hidden_size,
        value_bytes=size,
        micro_batch=score.micro_batch,
        losses="variants" in needs,
        windows=len(windows_of(total, score.ppl_n)),
        distances="states" in needs,
    )
    device = shape.device(
        block_bytes=max(sizes.blocks) * size,
        outside_bytes=(sizes.whole - inside) * size,
        vocabulary=hf_config.vocab_size,
        intermediate=getattr(hf_config, "intermediate_size", None),
    )
    weights = sizes.whole * size
    extra = 0
    if "gradients" in needs:
        extra = inside * (4 + size)  # gradients of a micro-batch, and their sum in fp32
    if "maps" in needs:
        windows = sum(total - count for count in {1, *(score.linear_n or (planned,))} if count)
        extra = max(extra, 2 * 8 * windows * hf_config.hidden_size**2)  # two fp64 matrices for each window
    large = weights > ROOM * GPU_BYTES
    return {
        "loop": score.loop if score.loop != "auto" else "block-major" if large else "batch-major",
        "weights": weights,
        "batch_major": weights + max(extra, device["chunk"] + device["logits"]),
        "block_major": sum(device.values()),
        "states": shape.states(),
    }


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
