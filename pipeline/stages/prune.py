"""Stage prune: choose the blocks that go, remove them at once, save a plain Hugging Face model, and prove it the same.

Where choosing runs the model (greedily, within a perplexity budget, to compare ways of choosing, or to fit linear
maps), several processes share that; the surgery and its self-test are the first one's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.criteria import CONTROLS
from pipeline.importance.controls import random_order, tail_order
from pipeline.importance.selection import choose_blocks, protected_blocks, read_block_order
from pipeline.importance.uncertainty import sequence_values, stability
from pipeline.model.blocks import block_parameters, check_indices
from pipeline.model.costs import count_removals
from pipeline.model.load import resolve_model
from pipeline.model.replacement import removed_runs
from pipeline.model.surgery import prune_folder
from pipeline.plan import describe_dense, planned_removal
from pipeline.run import RegrowError, Run, read_json, write_json
from pipeline.stages import score
from pipeline.stages.choosing import Chooser, choose, runs_model
from pipeline.stages.stage import Ahead, Stage
from pipeline.world import World


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The dense model's files by their content, and a block order that was written elsewhere."""
    order = config.prune.blocks
    if isinstance(order, Path) and not order.is_file():
        raise RegrowError(f"prune.blocks: block order {order} is not a file")
    own = {str(order): run.hash_of(order)} if isinstance(order, Path) else {}
    return {**score.inputs(config, run), **own}


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write prune/model (weights, config, tokenizer), prune/prune.json (what was removed and why, and the self-test)
    and, where it was asked for, prune/comparison.json."""
    folder, cut = run.stage("prune"), config.prune
    dense = resolve_model(config.model.path, config.model.revision)
    criteria = read_json(run.stage("score") / "scores.json")["criteria"]
    require_scored(config, criteria)
    meta = describe_dense(config, dense)
    sizes, parameters = block_parameters(meta), sum(parameter.numel() for parameter in meta.parameters())
    total = len(sizes)

    _require_room(config, run)
    chooser = Chooser(config, run, dense, world, say) if runs_model(config) else None
    removed, rounds = removed_blocks(config, criteria, sizes, parameters, chooser)
    say(f"removing {len(removed)} of {total} blocks: {removed}")
    maps, linear = _linear(chooser, removed) if chooser and cut.linear else ({}, None)
    comparison = None
    if chooser and cut.compare.enabled:
        comparison = chooser.comparison(criteria, total, removed, maps)
    del chooser
    gc.collect()
    if world.rank > 0:
        return {}
    if comparison is not None:
        write_json(folder / "comparison.json", comparison)

    record = prune_folder(
        dense,
        folder / "model",
        removed,
        maps,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        say=say,
    )
    protect = {"protect_first": cut.protect_first, "protect_last": cut.protect_last}
    values = None
    if cut.blocks is None and cut.selection == "one-shot" and cut.criterion not in CONTROLS:
        values = sequence_values(criteria[cut.criterion])
    record |= {
        "base_model": config.model.path,
        "base_revision": config.model.revision,
        "criterion": cut.criterion if cut.blocks is None else None,
        "selection": cut.selection if cut.blocks is None else None,
        "order_file": str(cut.blocks) if isinstance(cut.blocks, Path) else None,
        "removed": removed,
        "kept": [index for index in range(total) if index not in removed],
        # An explicit list is followed as it is.
        "protected": []
        if isinstance(cut.blocks, tuple)
        else protected_blocks(total, cut.protect_first, cut.protect_last),
        "stability": None if values is None else stability(values, len(removed), **protect),
        "greedy": rounds,
        "linear": linear,
    }
    write_json(folder / "prune.json", record)
    return {"removed": removed, "parameters": record["parameters"]}


def _require_room(config: Config, run: Run) -> None:
    """RegrowError where the model is to run here, and was too large for the device when it was scored."""
    scored = run.record("score")
    if runs_model(config) and scored and scored["result"]["loop"] == "block":
        raise RegrowError(
            "prune runs the whole model to compare, to fit maps, to choose greedily or within a perplexity, and stage "
            "score streamed it block by block; set prune.compare.enabled=false, and choose one-shot or contiguous by "
            "remove, ratio or parameters"
        )


def require_scored(config: Config, criteria: Collection[str]) -> None:
    """RegrowError when the criterion to choose by was not scored."""
    cut = config.prune
    if cut.blocks is None and cut.selection != "greedy" and cut.criterion not in (*CONTROLS, *criteria):
        raise RegrowError(
            f"prune.criterion {cut.criterion}: score.criteria are {', '.join(criteria)}; add it to score.criteria, "
            "or take one of these or a control"
        )


def removed_blocks(
    config: Config, criteria: Mapping[str, Any], sizes: list[int], parameters: int, chooser: Chooser | None
) -> tuple[list[int], list[dict[str, Any]] | None]:
    """The blocks to remove, and the rounds of greedy removal where it chose them."""
    cut, total = config.prune, len(sizes)
    if isinstance(cut.blocks, tuple):
        return check_indices(cut.blocks, total), None
    protect = {"protect_first": cut.protect_first, "protect_last": cut.protect_last}
    remove = None
    if cut.perplexity is None:
        protected = len(protected_blocks(total, cut.protect_first, cut.protect_last))
        remove = count_removals(
            total,
            protected,
            remove=cut.remove,
            ratio=cut.ratio,
            parameters=cut.parameters,
            dense_parameters=parameters,
            block_parameters=sizes,
        )
    if cut.selection == "greedy":
        rounds = chooser.greedy(remove, cut.perplexity)
        if not rounds:
            raise RegrowError(
                f"prune.perplexity {cut.perplexity:g}: without any one block the perplexity of the calibration "
                "sequences is above it; raise it"
            )
        plain = [{"removed": one.removed, "dense": one.dense, "perplexity": one.perplexity} for one in rounds]
        return sorted(one.removed for one in rounds), plain
    if isinstance(cut.blocks, Path):
        return choose_blocks(read_block_order(cut.blocks, total), remove, **protect), None
    if remove is None:
        return chooser.within(_order(config, criteria, total), cut.perplexity), None
    return choose(config, criteria, total, remove), None


def _order(config: Config, criteria: Mapping[str, Any], total: int) -> list[int]:
    """The order that a budget is followed along."""
    cut = config.prune
    if cut.criterion not in CONTROLS:
        return criteria[cut.criterion]["order"]
    if cut.criterion == "uniform":
        raise RegrowError(
            "prune.criterion uniform spreads a given number of blocks, and has no order to follow to a "
            "perplexity budget; say prune.remove"
        )
    return tail_order(total) if cut.criterion == "tail" else random_order(total, cut.seed)


def _linear(chooser: Chooser, removed: list[int]) -> tuple[dict[int, torch.Tensor], dict[str, Any]]:
    """The maps that take the removed runs' places, and what prune.json says of them."""
    if removed[0] == 0 and len(removed_runs(removed)) == 1:
        raise RegrowError(
            "prune.linear: every removed block lies at the start, where no block is left to fold a map into; protect "
            "block 0 (prune.protect_first), or leave prune.linear out"
        )
    maps, tokens = chooser.maps(removed)
    runs = [list(run) for run in removed_runs(removed) if run[0] in maps]
    with_map = chooser.perplexities(removed, maps)
    return maps, {
        "runs": [{"blocks": run, "folded_into": run[0] - 1} for run in runs],
        "tokens": tokens,
        "perplexity": {"without_map": chooser.perplexities(removed), "with_map": with_map},
    }


def check(ahead: Ahead) -> list[str]:
    """Whether so many blocks, or these, can go from this model, and by what will be scored."""
    config = ahead.config
    if "score" in ahead.due:
        require_scored(config, config.score.criteria)
    planned_removal(config, ahead.model)
    if isinstance(config.prune.blocks, Path):
        read_block_order(config.prune.blocks, len(block_parameters(ahead.model)))
    return []


STAGE = Stage(
    "prune",
    upstream=("data", "score"),
    format=3,
    work=work,
    inputs=inputs,
    # Several processes share what runs the model; without that, one does all.
    launched=runs_model,
    check=check,
    reads_model=True,
)
