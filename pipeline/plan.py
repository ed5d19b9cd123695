"""What a config will cost, before anything is fetched or trained: blocks, parameters, steps, FLOPs, memory, hours.

Neither a GPU nor weights nor a network are needed: the model's config.json is enough. What else is on this machine is
checked as at the start of a run. Which blocks go is unknown before scoring, so the counts are exact where all blocks
have one size, and a bound (which the plan says) elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from pipeline.checks import check_here
from pipeline.config import Config
from pipeline.importance.block_major import ROOM, needs
from pipeline.importance.distances import DISTANCES
from pipeline.importance.ppl import windows_of
from pipeline.launch import count_processes
from pipeline.model.architecture import read_config
from pipeline.model.blocks import block_parameters, check_indices
from pipeline.model.costs import (
    accumulation,
    attention_width,
    count_removals,
    flops_per_token,
    memory_per_gpu,
    meta_model,
    peak_flops,
    product_parameters,
    text_parameters,
)
from pipeline.model.loss import computes_router_loss, describe_router_loss
from pipeline.run import RegrowError, of_bytes

#: The GPU that hours are given for, as torch names it, and its memory in bytes.
GPU, GPU_BYTES = "NVIDIA H100 80GB HBM3", 80e9

#: A careful run, a good one, and the highest bf16 figure that public codebases report.
MFUS = (0.30, 0.43, 0.50)

#: A budget that is stretched by more than this, to whole steps, is said.
STRETCHED = 1.1


def plan(config: Config) -> dict[str, Any]:
    """The plan as plain values (JSON-ready), with ``notes`` for the reader and what was ``not_checked``.

    Raises RegrowError when the model's config.json cannot be found here, when the cut is impossible, when the global
    batch does not divide, when weights, tokenizer or text that are here are not as they must be, or when the run's
    folder cannot be written.
    """
    notes = one_large_step(config)
    source = find_architecture(config)
    model = describe_dense(config, source.parent)
    hf_config = model.config.get_text_config()
    sizes = block_parameters(model)
    dense = sum(parameter.numel() for parameter in model.parameters())
    removed = planned_removal(config, model)
    pruned, blocks = dense - sum(removed), len(sizes) - len(removed)
    trained = sum(parameter.numel() for parameter in text_parameters(model)) - sum(removed)
    uniform = len(set(sizes)) == 1
    if not uniform and not isinstance(config.prune.blocks, tuple):
        notes.append(
            f"blocks differ in size ({min(sizes):,} to {max(sizes):,} parameters): the pruned model's counts are upper "
            "bounds, as if the smallest went"
        )
    named = config.prune.blocks if isinstance(config.prune.blocks, tuple) else ()
    if sentence := describe_router_loss(model, computes_router_loss(model), named):
        notes.append(sentence)
    if config.prune.perplexity is not None:
        notes.append("prune.perplexity decides how many blocks go when they are pruned: planned here as if none went")
    train, row = config.train, config.data.row_length
    # A number is planned for wherever this is; auto is what a run takes here.
    processes = train.processes if isinstance(train.processes, int) else count_processes("auto")
    if train.processes == "auto" and not torch.cuda.device_count():
        notes.append(
            "train.processes is auto and this machine has no GPU: planned for one process, as a run starts here; "
            "train.processes=8 plans for 8 GPUs"
        )
    per_step, steps = config.tokens_per_step, config.steps
    per_token = flops_per_token(product_parameters(model) - sum(removed), blocks, attention_width(hf_config), row)
    positions = getattr(hf_config, "max_position_embeddings", None)
    if positions and row > positions:
        notes.append(f"data.row_length {row} is longer than the model's {positions} positions")
    if config.model.attention == "eager":
        notes.append("model.attention eager stores T x T matrices, which the activations here leave out")
    memory = [
        {
            "zero_stage": stage,
            **memory_per_gpu(
                trained,
                max(_modules(model, sizes)),
                stage,
                processes,
                train.micro_batch,
                row,
                hf_config,
                frozen=pruned - trained,
                blocks=blocks,
                gradient_checkpointing=train.gradient_checkpointing,
                weight_bytes=4 if config.model.dtype == "float32" else 2,
            ),
        }
        for stage in range(4)
    ]
    needed = memory[train.zero_stage]["total"]
    if needed > 0.9 * GPU_BYTES:
        notes.append(
            f"train.zero_stage {train.zero_stage} needs about {needed / 1e9:.0f} GB of an 80 GB GPU, without CUDA's "
            "context and communication buckets: tight or too much; a higher stage, gradient checkpointing or a smaller "
            "micro-batch takes less"
        )
    peak = peak_flops(GPU) or 0.0
    total = per_token * steps * per_step
    return {
        "run": config.run.name,
        "model": {"path": config.model.path, "architecture": str(source)},
        "blocks": {"dense": len(sizes), "removed": len(removed), "pruned": blocks, "uniform": uniform},
        "parameters": {"dense": dense, "pruned": pruned, "trained": trained},
        "training": {
            "tokens": train.tokens,
            "row_length": row,
            "global_batch": train.global_batch,
            "micro_batch": train.micro_batch,
            "accumulation": accumulation(train.global_batch, train.micro_batch, processes),
            "processes": processes,
            "tokens_per_step": per_step,
            "steps": steps,
            "zero_stage": train.zero_stage,
        },
        "flops": {"convention": "palm", "per_token": per_token, "total": total},
        "scoring": _scoring(config, hf_config, sizes, dense, len(removed)),
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
        "notes": notes,
        "not_checked": check_here(config, model, source.parent),
    }


def one_large_step(config: Config) -> list[str]:
    """A line where whole steps make much more of the token budget than it is."""
    train = config.train
    per_step, steps = config.tokens_per_step, config.steps
    stretched = steps * per_step / train.tokens
    if stretched <= STRETCHED:
        return []
    what = "one step is" if steps == 1 else f"{steps} steps are"
    return [
        f"{what} {stretched:.{0 if stretched >= 10 else 1}f} times the budget: train.tokens {train.tokens:,} becomes "
        f"{steps * per_step:,}, by {train.global_batch} rows of {config.data.row_length} tokens a step; lower "
        "train.global_batch or data.row_length"
    ]


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
        cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    except ValueError:
        raise RegrowError(f"model.path: {model.path} is neither a folder here nor a model's name on the hub") from None
    if isinstance(cached, str):
        return Path(cached)
    raise RegrowError(
        f"model.path: {model.path} is not a folder here, and plan fetches nothing; set model.architecture to a folder "
        "with its config.json, or fetch the model first"
    )


def describe_dense(config: Config, folder: Path) -> nn.Module:
    """The dense model in ``folder`` on the meta device: its blocks, shapes and config, without weights."""
    trusted = config.model.trust_remote_code
    return meta_model(read_config(folder, trusted), trusted)


def planned_removal(config: Config, model: nn.Module) -> list[int]:
    """Parameters of each block that goes: the named blocks, or as many of the smallest; none where a perplexity will
    decide.

    ``model`` is the dense one; the meta device will do. Raises RegrowError when the cut is impossible.
    """
    prune, sizes = config.prune, block_parameters(model)
    if prune.perplexity is not None:
        return []
    if isinstance(prune.blocks, tuple):
        # Named blocks go whatever the protect rule says.
        return [sizes[index] for index in check_indices(prune.blocks, len(sizes))]
    count = count_removals(
        len(sizes),
        prune.protect_first + prune.protect_last,
        remove=prune.remove,
        ratio=prune.ratio,
        parameters=prune.parameters,
        dense_parameters=sum(parameter.numel() for parameter in model.parameters()),
        block_parameters=sizes,
    )
    return sorted(sizes)[:count]


def _scoring(config: Config, hf_config: Any, sizes: list[int], dense: int, planned: int) -> dict[str, Any]:
    """What the sweep takes, in bytes, in both orders of its loops, and the order that ``auto`` takes on the GPU.

    ``planned``: blocks that will go, as far as is known.
    """
    score = config.score
    size = getattr(torch, score.dtype).itemsize
    wanted = needs(
        len(sizes),
        score.sequences,
        score.length,
        hf_config.hidden_size,
        size,
        max(sizes) * size,
        (dense - sum(sizes)) * size,
        micro_batch=score.micro_batch,
        vocabulary=hf_config.vocab_size,
        intermediate=getattr(hf_config, "intermediate_size", None),
        losses="ppl" in score.criteria,
        windows=len(windows_of(len(sizes), score.ppl_n)),
        distances=bool(set(score.criteria) & set(DISTANCES)),
    )
    weights = dense * size
    extra = 0
    if "taylor" in score.criteria:
        extra = sum(sizes) * (4 + size)  # gradients of a micro-batch, and their sum in fp32
    if "linear" in score.criteria:
        windows = sum(len(sizes) - count for count in {1, *(score.linear_n or (planned,))} if count)
        extra = max(extra, 2 * 8 * windows * hf_config.hidden_size**2)  # two fp64 matrices for each window
    large = weights > ROOM * GPU_BYTES
    return {
        "loop": score.loop if score.loop != "auto" else "block-major" if large else "batch-major",
        "weights": weights,
        "batch_major": weights + max(extra, wanted["chunk"] + wanted["logits"]),
        "block_major": wanted["device"],
        "states": wanted["states"],
    }


def _modules(model: nn.Module, sizes: list[int]) -> list[int]:
    """Sizes of what ZeRO stage 3 gathers as a whole: blocks and embeddings."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [*sizes, *(end.weight.numel() for end in ends if end is not None)]


def _untrained(parameters: dict[str, int]) -> list[str]:
    """A line on what text does not reach, where there is such a part."""
    apart = parameters["pruned"] - parameters["trained"]
    if not apart:
        return []
    return [f"trained      {parameters['trained']:,} of them; {apart:,} see no text, and stay as they are"]


def plan_text(plan: dict[str, Any]) -> str:
    """The plan as text for a terminal."""
    blocks, parameters, training, flops = plan["blocks"], plan["parameters"], plan["training"], plan["flops"]
    scoring = plan["scoring"]
    share = parameters["pruned"] / parameters["dense"]
    lines = [
        f"plan of {plan['run']}: {plan['model']['path']}, by {os.path.relpath(plan['model']['architecture'])}",
        "",
        f"blocks       {blocks['dense']} -> {blocks['pruned']}, {blocks['removed']} removed",
        f"parameters   {parameters['dense']:,} -> {parameters['pruned']:,} ({share:.1%})",
        *_untrained(parameters),
        f"tokens       {training['tokens']:,} in {training['steps']:,} steps of {training['tokens_per_step']:,}",
        f"batch        {training['global_batch']} rows of {training['row_length']} tokens = micro-batch "
        f"{training['micro_batch']} x accumulation {training['accumulation']} x {training['processes']} processes",
        f"FLOPs        {flops['per_token']:.4g} a token, {flops['total']:.4g} in all "
        "(palm: 6 N + 12 L d T, N without the input embedding)",
        "",
        f"scoring      {scoring['loop']}: weights {of_bytes(scoring['weights'])}; on a device "
        f"{of_bytes(scoring['batch_major'])} batch-major, or {of_bytes(scoring['block_major'])} block-major with "
        f"{of_bytes(scoring['states'])} of states on disk",
        "",
        "memory per GPU in GB, estimated; * is this config's ZeRO stage",
    ]
    items = [name for name in plan["memory"][0] if name != "zero_stage"]
    lines.append("  ZeRO" + "".join(f"{name:>14}" for name in items))
    for row in plan["memory"]:
        mark = "*" if row["zero_stage"] == training["zero_stage"] else " "
        lines.append(f"{mark} {row['zero_stage']:>4}" + "".join(f"{row[name] / 1e9:14.1f}" for name in items))
    lines += ["", f"time on {plan['gpu']['name']} ({plan['gpu']['peak_flops'] / 1e12:.1f} TFLOP/s, dense bf16)"]
    lines.append(f"{'MFU':>6}{'tokens/s/GPU':>16}{'GPU-hours':>14}{'days on ' + str(training['processes']):>14}")
    for row in plan["time"]:
        speed, hours, days = row["tokens_per_second_per_gpu"], row["gpu_hours"], row["days"]
        lines.append(f"{row['mfu']:>6.0%}{speed:>16,.0f}{hours:>14,.{0 if hours >= 10 else 2}f}{days:>14,.2f}")
    if plan["notes"] or plan["not_checked"]:
        lines += ["", *(f"note: {note}" for note in plan["notes"])]
        lines += [f"not checked: {line}" for line in plan["not_checked"]]
    return "\n".join(lines) + "\n"
