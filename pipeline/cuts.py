"""From the config's prune section to values: the cut that it states, the way to choose it, the model that is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.criteria import CONTROLS
from pipeline.files import read_json
from pipeline.importance.choosing import Removals, Way
from pipeline.importance.criteria import Text
from pipeline.importance.cut import Cut
from pipeline.importance.linear import find_projections
from pipeline.importance.selection import read_block_order
from pipeline.inputs import Inputs
from pipeline.loading import loading, spread
from pipeline.model.blocks import find_blocks
from pipeline.model.dispatch import lying, place_words
from pipeline.model.load import load_model
from pipeline.run import Run
from pipeline.world import World


def read_cut(config: Config) -> Cut:
    """How much goes, and what is protected."""
    prune = config.prune
    return Cut(
        remove=prune.remove,
        ratio=prune.ratio,
        parameters=prune.parameters,
        perplexity=prune.perplexity,
        # A file orders all blocks; prune.remove says how many of them go.
        blocks=prune.blocks if isinstance(prune.blocks, tuple) else None,
        protect_first=prune.protect_first,
        protect_last=prune.protect_last,
    )


def read_way(config: Config, total: int) -> Way:
    """How the blocks, of ``total``, are chosen. Raises RegrowError on a block order that is not one of so many."""
    prune = config.prune
    if prune.blocks is not None:
        order = tuple(read_block_order(prune.blocks, total)) if isinstance(prune.blocks, Path) else None
        return Way("config", "given", prune.seed, order)
    return Way(prune.criterion, "control" if prune.criterion in CONTROLS else prune.selection, prune.seed)


def open_removals(config: Config, run: Run, world: World, say: Callable[[str], None]) -> Removals:
    """The dense model on every process's device, or spread where it is too large, with the texts that it is run on.
    Every process asks for it.

    Raises RegrowError when linear maps are asked for that no block could take.
    """
    text = Inputs(config, run)

    def texts() -> tuple[torch.Tensor, torch.Tensor | None]:
        ids = read_json(run.stage("score") / "calibration.json")["input_ids"]
        asked = config.prune.compare
        return torch.tensor(ids), text.held_out_rows(asked.length, config.evaluate.perplexity.held_out.bos, asked.rows)

    calibration, held_out = world.on_first(texts)
    folder = run.stage("prune") / "progress"
    dispatch = spread(config, text.model, config.score.dtype, world, folder)
    model = load_model(text.model, device=world.device, dispatch=dispatch, **loading(config, config.score.dtype))
    if dispatch is not None:
        say(f"the dense model is dispatched: {place_words(lying(model))}")
    if config.prune.linear:
        # Refused now, not after the rounds of greedy removal.
        find_projections(model, [(start, 1) for start in range(len(find_blocks(model)))])
    width = model.config.get_text_config().hidden_size
    return Removals(
        model,
        Text(calibration, config.score.micro_batch, lambda: world.on_first(lambda: text.for_maps(width))),
        read_cut(config),
        held_out=held_out,
        ridge=config.score.linear_ridge,
        world=world,
        folder=folder,
        say=say,
    )
