"""What can be known before any stage starts: a run that must fail at a later stage does not begin an earlier one.

Nothing here reads weights or text. The stages check again whatever depends on what they meet.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.config import Config
from pipeline.data.loader import fitting_workers
from pipeline.importance.selection import read_block_order
from pipeline.launch import Place, count_processes
from pipeline.model.blocks import block_parameters
from pipeline.model.costs import accumulation, meta_model
from pipeline.model.load import resolve_model
from pipeline.plan import load_architecture, removed_sizes
from pipeline.run import RegrowError
from pipeline.stages.prune import require_scored


def preflight(due: Collection[str], config: Config, place: Place) -> None:
    """Check the stages that are ``due``. Raises RegrowError naming the key, what was found, and what to do."""
    if "train" in due:
        _training(config, place.world if place.launcher else count_processes(config.train.processes))
    if "evaluate" in due and config.data.held_out is None:
        raise RegrowError("data.held_out is not set, so stage evaluate has nothing to compute a perplexity on; set it")
    if {"score", "prune", "evaluate"} & set(due):
        resolve_model(config.model.path, config.model.revision)
    if "prune" in due:
        if "score" in due:
            require_scored(config, config.score.criteria)
        _cut(config)


def _training(config: Config, processes: int) -> None:
    recipe = config.train
    accumulation(recipe.global_batch, recipe.micro_batch, processes)
    fitting_workers(config.data.workers, config.data.lanes, processes)
    if config.model.dtype == "float16":
        raise RegrowError(
            "model.dtype float16: training would need loss scaling, which is not here; take bfloat16 or float32"
        )


def _cut(config: Config) -> None:
    """Whether so many blocks, or these, can go from this model: its config.json tells."""
    folder = resolve_model(config.model.path, config.model.revision)
    model = meta_model(load_architecture(folder / "config.json", config), config.model.trust_remote_code)
    sizes = block_parameters(model)
    removed_sizes(config.prune, sizes, sum(parameter.numel() for parameter in model.parameters()))
    if isinstance(config.prune.blocks, Path):
        read_block_order(config.prune.blocks, len(sizes))
