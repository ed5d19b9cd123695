"""Stage prune: remove the least important blocks at once, save a plain Hugging Face model, and prove it the same."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.importance.selection import choose_blocks, protected_blocks, read_block_order
from pipeline.launch import World
from pipeline.model.blocks import block_parameters, check_indices, find_blocks, remove_blocks, skip_blocks
from pipeline.model.costs import count_removals
from pipeline.model.equivalence import (
    CACHE_TOLERANCE,
    TOLERANCE,
    cached_logits,
    compare,
    full_logits,
    probe_ids,
)
from pipeline.model.load import load_model, resolve_model, save_model
from pipeline.run import RegrowError, Run, read_json, require_space, write_json
from pipeline.stages import score

FORMAT = 1
UPSTREAM = ("score",)
LAUNCHED = False


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The dense model's files by their content, and a block order that was written elsewhere."""
    order = config.prune.blocks
    if isinstance(order, Path) and not order.is_file():
        raise RegrowError(f"prune.blocks: block order {order} is not a file")
    own = {str(order): run.hash_of(order)} if isinstance(order, Path) else {}
    return {**score.inputs(config, run), **own}


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write prune/model (weights, config, tokenizer) and prune/prune.json (what was removed, and the self-test)."""
    folder = run.stage("prune")
    dense = resolve_model(config.model.path, config.model.revision)
    model = load_model(dense, dtype=config.model.dtype, trust_remote_code=config.model.trust_remote_code)
    dense_parameters = model.num_parameters()
    total = len(find_blocks(model))
    removed = choose(config, run, block_parameters(model), dense_parameters)
    say(f"removing {len(removed)} of {total} blocks: {removed}")

    # The values are those that will be saved, computed with in fp32: differences show mistakes, not rounding.
    saved_dtype = model.dtype
    model = model.float()
    ids = probe_ids(model.config.get_text_config().vocab_size)
    with skip_blocks(model, removed):
        skipped, skipped_cached = full_logits(model, ids), cached_logits(model, ids)
    remove_blocks(model, removed)
    pruned, pruned_cached = full_logits(model, ids), cached_logits(model, ids)

    model = model.to(saved_dtype)
    parameters = model.num_parameters()
    require_space(folder, parameters * saved_dtype.itemsize, "the pruned model")
    scratch = folder / "model.new"
    shutil.rmtree(scratch, ignore_errors=True)
    save_model(model, scratch, companions_from=dense)
    shutil.rmtree(folder / "model", ignore_errors=True)
    scratch.rename(folder / "model")
    del model
    gc.collect()

    reloaded = load_model(folder / "model", dtype=torch.float32)
    checks = [
        compare("blocks skipped and blocks removed", skipped, pruned, TOLERANCE),
        compare("blocks skipped and blocks removed, with cache", skipped_cached, pruned_cached, TOLERANCE),
        compare("removed in memory and reloaded", pruned, full_logits(reloaded, ids), 0),
        compare("removed in memory and reloaded, with cache", pruned_cached, cached_logits(reloaded, ids), 0),
        compare("with and without cache", pruned, pruned_cached, CACHE_TOLERANCE),
    ]
    say(f"self-test: {len(checks)} comparisons hold; {dense_parameters:,} -> {parameters:,} parameters")
    record = {
        "base_model": config.model.path,
        "base_revision": config.model.revision,
        "criterion": config.prune.criterion if config.prune.blocks is None else None,
        "order_file": str(config.prune.blocks) if isinstance(config.prune.blocks, Path) else None,
        "removed": removed,
        "kept": [index for index in range(total) if index not in removed],
        # An explicit list is followed as it is.
        "protected": []
        if isinstance(config.prune.blocks, tuple)
        else protected_blocks(total, config.prune.protect_first, config.prune.protect_last),
        "parameters": {"dense": dense_parameters, "pruned": parameters},
        "self_test": {"dtype": "float32", "checks": checks},
    }
    write_json(folder / "prune.json", record)
    return {"removed": removed, "parameters": record["parameters"]}


def choose(config: Config, run: Run, sizes: list[int], dense_parameters: int) -> list[int]:
    """The blocks to remove: an explicit list as it is, else the first free ones of an order."""
    cut, total = config.prune, len(sizes)
    if isinstance(cut.blocks, tuple):
        return check_indices(cut.blocks, total)
    protected = len(protected_blocks(total, cut.protect_first, cut.protect_last))
    remove = count_removals(
        total, protected, remove=cut.remove, ratio=cut.ratio, parameters=cut.parameters,
        dense_parameters=dense_parameters, block_parameters=sizes,
    )  # fmt: skip
    if isinstance(cut.blocks, Path):
        order = read_block_order(cut.blocks, total)
    else:
        order = read_json(run.stage("score") / "scores.json")["criteria"][cut.criterion]["order"]
    return choose_blocks(order, remove, protect_first=cut.protect_first, protect_last=cut.protect_last)
