"""Stage prune: choose the blocks that go, remove them at once, save a plain Hugging Face model, and prove it the same.

Where choosing runs the model (greedily, within a perplexity budget, to compare ways of choosing, or to fit linear
maps), several processes share that; the surgery and its self-test are the first one's.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.criteria import CONTROLS
from pipeline.cuts import open_removals, read_cut, read_way
from pipeline.errors import RegrowError
from pipeline.files import hash_json, read_json, write_json
from pipeline.importance.choosing import Choice, Entries, choose
from pipeline.importance.comparison import compare_ways
from pipeline.importance.cut import large_cuts
from pipeline.importance.perplexities import Maps
from pipeline.importance.uncertainty import sequence_values, stability
from pipeline.inputs import Inputs
from pipeline.loading import offloaded
from pipeline.model.blocks import blocks_of_first, require_removable
from pipeline.model.describe import Sizes, describe_folder
from pipeline.model.load import resolve_model
from pipeline.model.surgery import prune_folder
from pipeline.run import Run
from pipeline.stages import score
from pipeline.stages.stage import Ahead, Stage
from pipeline.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    folder = run.stage("prune")
    dense = resolve_model(config.model.path, config.model.revision)
    entries = read_json(run.stage("score") / "scores.json")["criteria"]
    require_scored(config, entries)
    scored = run.record("score")
    _require_room(config, scored is not None and scored["result"]["loop"] == "block")
    described = describe_folder(dense, config.model.trust_remote_code)
    sizes = Sizes.of(described)

    chosen = _choose(config, run, entries, sizes, world, say)
    # The model that was asked is gone with the last reference to it, and with it what it read from disk.
    gc.collect()
    shutil.rmtree(offloaded(folder / "progress", world), ignore_errors=True)
    if world.rank > 0:
        return {}
    if chosen.comparison is not None:
        write_json(folder / "comparison.json", {**chosen.comparison, **_measured_by(config, run, chosen.comparison)})

    removed = chosen.blocks.removed
    proof = prune_folder(
        dense,
        folder / "model",
        removed,
        chosen.maps,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        say=say,
    )
    record = {**_record(config, entries, len(sizes.blocks), chosen), "first": _of_first(described, removed)}
    write_json(folder / "prune.json", {**proof, **record})
    return {"removed": removed, "parameters": proof["parameters"]}


@dataclass(frozen=True)
class _Chosen:
    """The blocks that go, the maps that take their place, and what was measured on the way."""

    blocks: Choice
    maps: Maps
    linear: dict[str, Any] | None
    comparison: dict[str, Any] | None


def _choose(
    config: Config, run: Run, entries: Entries, sizes: Sizes, world: World, say: Callable[[str], None]
) -> _Chosen:
    """Choose, fit and compare as the config asks, with the dense model where one of these runs it."""
    prune, cut, way = config.prune, read_cut(config), read_way(config, len(sizes.blocks))
    removals = open_removals(config, run, world, say) if config.prune.runs_model else None
    choice = Choice(choose(way, cut, entries, sizes)) if removals is None else removals.choose(way, entries)
    removed = choice.removed
    if removals is not None:
        # Before the comparison, which can take hours.
        require_removable(removals.model, removed)
    say(f"removing {len(removed)} of {len(sizes.blocks)} blocks: {removed}")
    maps, linear = removals.replaced(removed) if prune.linear else ({}, None)
    comparison = None
    if prune.compare.enabled:
        asked = prune.compare
        comparison = compare_ways(removals, entries, way, removed, maps, shares=asked.shares, greedy=asked.greedy)
    return _Chosen(choice, maps, linear, comparison)


def _measured_by(config: Config, run: Run, comparison: dict[str, Any]) -> dict[str, Any]:
    """What comparison.json says of the model and the texts that its perplexities were measured with."""
    known = read_json(run.stage("score") / "scores.json")["calibration"]
    calibration = {**comparison["calibration"], **{key: known.get(key) for key in ("bos", "sha256")}}
    held_out = comparison["held_out"]
    if held_out is not None:
        of_files = hash_json(Inputs(config, run).manifest["held_out"])
        held_out = {**held_out, "bos": config.evaluate.perplexity.held_out.bos, "sha256": of_files}
    model = {**score.scored_model(config, run), "dtype": config.score.dtype}
    return {"model": model, "calibration": calibration, "held_out": held_out}


def _record(config: Config, entries: Entries, total: int, chosen: _Chosen) -> dict[str, Any]:
    """What prune.json says of the choice."""
    prune, cut, removed = config.prune, read_cut(config), chosen.blocks.removed
    given, rounds, values = prune.blocks is not None, chosen.blocks.rounds, None
    if not given and prune.selection == "one-shot" and prune.criterion not in CONTROLS:
        values = sequence_values(entries[prune.criterion])
    return {
        "base_model": config.model.path,
        "base_revision": config.model.revision,
        "criterion": None if given else prune.criterion,
        "selection": None if given else prune.selection,
        "order_file": str(prune.blocks) if isinstance(prune.blocks, Path) else None,
        "removed": removed,
        "kept": [index for index in range(total) if index not in removed],
        # An explicit list is followed as it is.
        "protected": [] if cut.blocks is not None else cut.protected(total),
        "stability": None if values is None else stability(values, cut.taking(len(removed))),
        "greedy": None
        if rounds is None
        else [{"removed": one.removed, "dense": one.dense, "perplexity": one.perplexity} for one in rounds],
        "linear": chosen.linear,
    }


def _of_first(model: PreTrainedModel, removed: list[int]) -> dict[str, Any] | None:
    """Of a model that was pruned before, in the numbers of the first dense model: its blocks, and those that go."""
    known = blocks_of_first(model)
    if known is None:
        return None
    total, kept = known
    return {"dense_blocks": total, "kept": kept, "removed": sorted(kept[block] for block in removed)}


def _require_room(config: Config, by_block: bool) -> None:
    """RegrowError where the model is to run here, is too large for the device (it is scored ``by_block``), and may not
    be spread."""
    if config.prune.runs_model and by_block and config.model.dispatch is False:
        raise RegrowError(
            "prune runs the whole model to compare, to fit maps, to choose greedily or within a perplexity, stage "
            "score streams it block by block, and model.dispatch is false; set model.dispatch=auto, or "
            "prune.compare.enabled=false and choose one-shot or contiguous by remove, ratio or parameters"
        )


def require_scored(config: Config, criteria: Collection[str]) -> None:
    """RegrowError when the criterion to choose by was not scored."""
    cut = config.prune
    if cut.blocks is None and cut.selection != "greedy" and cut.criterion not in (*CONTROLS, *criteria):
        raise RegrowError(
            f"prune.criterion {cut.criterion}: score.criteria are {', '.join(criteria)}; add it to score.criteria, "
            "or take one of these or a control"
        )


def check(ahead: Ahead) -> list[str]:
    """Whether so many blocks, or these, can go from this model, and by what will be scored."""
    config = ahead.config
    if "score" in ahead.due:
        require_scored(config, config.score.criteria)
    _require_room(config, config.score.loop == "block-major")
    sizes = Sizes.of(ahead.model)
    cut = read_cut(config)
    planned = len(cut.planned(sizes))
    if cut.blocks is not None:
        require_removable(ahead.model, cut.blocks)
    notes = large_cuts(planned, len(sizes.blocks), blocks_of_first(ahead.model))
    if ahead.elsewhere and isinstance(config.prune.blocks, Path) and not config.prune.blocks.is_file():
        return [f"prune.blocks {config.prune.blocks}: not on this machine", *notes]
    read_way(config, len(sizes.blocks))
    return notes


STAGE = Stage(
    "prune",
    upstream=("data", "score"),
    format=3,
    readable=2,
    work=work,
    inputs=inputs,
    # Several processes share what runs the model; without that, one does all.
    launched=lambda config: config.prune.runs_model,
    check=check,
    reads_model=True,
)
