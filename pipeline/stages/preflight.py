"""What can be known before any stage starts: a run that must fail at a later stage does not begin an earlier one.

It takes seconds and writes nothing. The stages check again whatever depends on what they meet.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.checks import check_prompts, check_texts, check_tokenizer, check_weights
from pipeline.config import Config
from pipeline.data.loader import fitting_workers
from pipeline.importance.linear import HELD_OUT, TOKENS_PER_INPUT
from pipeline.importance.selection import read_block_order
from pipeline.launch import Place, count_processes
from pipeline.model.blocks import block_parameters
from pipeline.model.costs import accumulation
from pipeline.model.load import resolve_model
from pipeline.plan import describe_dense, one_large_step, planned_removal
from pipeline.run import RegrowError, require_writable
from pipeline.stages.prune import require_scored

#: The stages that read the dense model's folder.
READ_MODEL = {"data", "score", "prune", "evaluate"}


def preflight(due: Collection[str], config: Config, place: Place) -> list[str]:
    """Check the stages that are ``due``; returns what people should know of the run, a line each.

    Raises RegrowError naming the key, what was found, and what to do.
    """
    notes = []
    for stage in due:
        require_writable(config.run.folder / config.run.name / stage, "run.folder")
    if "train" in due:
        _training(config, place.world if place.launcher else count_processes(config.train.processes))
        notes += one_large_step(config)
    if "evaluate" in due and config.data.held_out is None:
        raise RegrowError("data.held_out is not set, so stage evaluate has nothing to compute a perplexity on; set it")
    if READ_MODEL & set(due):
        folder = resolve_model(config.model.path, config.model.revision)
        model = describe_dense(config, folder)
        if "score" in due:
            _windows(config, model)
            _linear(config, model)
        if "prune" in due:
            if "score" in due:
                require_scored(config, config.score.criteria)
            _cut(config, model)
        check_tokenizer(config, folder, model)
        if "evaluate" in due:
            check_prompts(config, folder, model)
        notes += check_weights(folder, model)
    if "data" in due:
        notes += check_texts(config)
        if config.data.tokenised is not None:
            require_writable(config.data.tokenised, "data.tokenised")
    return notes


def _training(config: Config, processes: int) -> None:
    recipe = config.train
    accumulation(recipe.global_batch, recipe.micro_batch, processes)
    fitting_workers(config.data.workers, config.data.lanes, processes)
    if config.model.dtype == "float16":
        raise RegrowError(
            "model.dtype float16: training would need loss scaling, which is not here; take bfloat16 or float32"
        )


def _windows(config: Config, model: Any) -> None:
    """Whether the windows of ppl fit into the model, and hold the one that is to be removed."""
    total, cut = len(block_parameters(model)), config.prune
    long = [count for count in config.score.ppl_n if count >= total]
    if long:
        raise RegrowError(f"score.ppl_n {long[0]}: the model has {total} blocks, a window holds fewer")
    planned = len(planned_removal(config, model))
    if cut.criterion == "ppl" and cut.selection == "contiguous" and planned not in config.score.ppl_n:
        raise RegrowError(
            f"score.ppl_n {list(config.score.ppl_n)}: prune removes a window of {planned} blocks by ppl; add {planned} "
            "to it"
        )


def _linear(config: Config, model: Any) -> None:
    """Whether linear maps can be fitted as the config says: enough tokens, and windows that the model has."""
    score, cut = config.score, config.prune
    if "linear" not in score.criteria and not cut.linear:
        return
    total, width = len(block_parameters(model)), model.config.get_text_config().hidden_size
    long = [count for count in score.linear_n or () if count >= total]
    if long:
        raise RegrowError(f"score.linear_n {long[0]}: the model has {total} blocks, a window holds fewer")
    count, needed = score.linear_sequences, -(-TOKENS_PER_INPUT * width // score.length)
    if count is not None and count - count // HELD_OUT < needed:
        raise RegrowError(
            f"score.linear_sequences {count}: every fourth judges, which leaves {count - count // HELD_OUT} of "
            f"{score.length} tokens to fit maps of {width} x {width} on; {needed} are needed ({TOKENS_PER_INPUT} "
            "tokens for each input); raise it, or leave it null"
        )
    planned = len(planned_removal(config, model))
    by_window = cut.criterion == "linear" and cut.selection == "contiguous"
    if by_window and score.linear_n is not None and planned not in score.linear_n:
        raise RegrowError(
            f"score.linear_n {list(score.linear_n)}: prune removes a window of {planned} blocks by linear; add it, or "
            "leave linear_n null"
        )


def _cut(config: Config, model: Any) -> None:
    """Whether so many blocks, or these, can go from this model: its config.json tells."""
    planned_removal(config, model)
    if isinstance(config.prune.blocks, Path):
        read_block_order(config.prune.blocks, len(block_parameters(model)))
