"""All parts of a run in their order, for a plan: what scoring, choosing, training and judging compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pipeline.commands.plan_disk import exports_of
from pipeline.commands.plan_evaluation import evaluation_parts, export_parts, training_parts
from pipeline.commands.plan_scoring import pruning_parts, scoring_parts
from pipeline.commands.plan_time import Part, Shape
from pipeline.config import Config
from pipeline.stages.teaching import teacher_flops


def parts_of_run(
    config: Config,
    model: PreTrainedModel,
    removed: Sequence[int],
    teacher: Path | None,
    training: float,
    processes: int,
) -> tuple[list[Part], list[str]]:
    """The parts, and lines on what is in none of them.

    ``model``, on the meta device, loses blocks of ``removed`` parameters; ``teacher`` is the folder with the teacher's
    config.json; ``training`` are the FLOPs of all steps, which ``processes`` share, as do stages that ask for ``auto``.
    """

    def count(asked: int | str) -> int:
        return asked if isinstance(asked, int) else processes

    hidden, judged = model.config.get_text_config().hidden_size, getattr(torch, config.model.dtype).itemsize
    scored = Shape.of(model, getattr(torch, config.score.dtype).itemsize)
    cut = Shape.of(model, scored.value_bytes, removed)
    dense, pruned = Shape.of(model, judged), Shape.of(model, judged, removed)
    parts = scoring_parts(config, scored, hidden, len(removed), count(config.score.processes))
    parts += pruning_parts(config, scored, cut, hidden, count(config.prune.processes))
    parts += _before_training(config, dense, pruned, teacher, processes)
    what = f"{config.steps:,} steps of {config.tokens_per_step:,} tokens"
    parts += [Part("train", what, training, processes=processes), *training_parts(config, pruned, processes)]
    judging, missing = evaluation_parts(config, dense, pruned, count(config.evaluate.processes))
    parts += [*judging, *export_parts(config, pruned, exports_of(config), count(config.evaluate.processes))]
    return parts, missing


def _before_training(config: Config, dense: Shape, pruned: Shape, teacher: Path | None, processes: int) -> list[Part]:
    """Healing, in which both models read, and a teacher that is asked ahead."""
    parts, healing, samples = [], config.train.healing, config.train.distill.samples
    if config.train.heal != "none":
        tokens = healing.sequences * healing.length
        flops = tokens * (dense.forward(healing.length) + pruned.forward(healing.length))
        parts.append(Part("train", f"healing on {tokens:,} tokens", flops, processes=processes))
    if config.train.objective != "lm" and samples is not None and teacher is not None:
        tokens = config.steps * config.tokens_per_step
        flops = tokens * teacher_flops(config, teacher)
        parts.append(Part("train", f"the teacher's answers to {tokens:,} tokens", flops, processes=processes))
    return parts
