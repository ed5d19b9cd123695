"""What training takes beyond the blocks that are left, for a plan: a token's FLOPs with adapters and a teacher, and
what is done before the first step."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel

from pipeline.config import Config
from pipeline.files import of_bytes
from pipeline.model.costs import Trained, attention_width, flops_per_token, product_parameters
from pipeline.model.describe import Sizes
from pipeline.stages.sampling import answer_bytes
from pipeline.stages.teaching import find_teacher, teacher_bytes, teacher_flops


def planned_teacher(config: Config, begun: Path) -> Path | None:
    """The folder with the teacher's config.json, None where there is no teacher or it is not here; ``begun`` is that of
    the model that the run begins with. Nothing is fetched."""
    if config.train.objective == "lm":
        return None
    if config.train.distill.teacher != "dense":
        return find_teacher(config) if Path(config.train.distill.teacher).expanduser().exists() else None
    dense = config.model.dense
    if dense is None:
        return begun
    with contextlib.suppress(ValueError):
        return config_folder(dense, config.model.dense_revision)
    return None


def config_folder(path: str, revision: str | None) -> Path | None:
    """The folder here with the config.json of a model, which is a folder or in the hub's cache; None where there is
    none. ValueError where ``path`` can be no model's name."""
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    cached = None if folder.is_dir() else try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def training_flops(
    config: Config, model: PreTrainedModel, trained: Trained, removed: Collection[int], teacher: Path | None
) -> float:
    """FLOPs of a token in training, as a run records them, of ``model`` without blocks of ``removed`` parameters.

    ``model`` may be on the meta device, and has no adapters; ``trained`` is what training holds of it. ``teacher``: the
    folder with its config.json; asked ahead it takes none of them.
    """
    products = product_parameters(model) - sum(removed)
    # What adapters multiply is added to what they stand on, which is all frozen.
    adapters, frozen = (trained.parameters, products) if config.train.method == "lora" else (0, 0)
    blocks, width = len(Sizes.of(model).blocks) - len(removed), attention_width(model.config.get_text_config())
    own = flops_per_token(products + adapters, blocks, width, config.data.row_length, frozen)
    return own if config.train.distill.samples is not None else own + teacher_flops(config, teacher)


def teacher_lines(config: Config, folder: Path | None, processes: int) -> list[str]:
    """A line on what a teacher costs, whose config.json lies in ``folder``; None: in none that is here."""
    train, asked = config.train, config.train.distill
    if train.objective == "lm":
        return []
    if folder is None:
        return [f"train.objective {train.objective}: the teacher is not here, and nothing of it is in this plan"]
    flops = teacher_flops(config, folder)
    if asked.samples is None:
        held = teacher_bytes(config, folder, processes)
        return [
            f"train.objective {train.objective}: of a token's FLOPs {flops:.4g} are the "
            f"teacher's, whose weights take {held / 1e9:.1f} GB more of each GPU than the table says"
        ]
    each, tokens = answer_bytes(config, folder), config.steps * config.tokens_per_step
    return [
        f"train.distill.samples {asked.samples}: before training the teacher is asked about each row once, which takes "
        f"{flops:.4g} FLOPs a token, {flops * tokens:.4g} in all, beside those above; its answers take about "
        f"{each:.0f} bytes a token, {of_bytes(each * tokens)} in {asked.store}, and runs that find them there do "
        "without it"
    ]


def healing_lines(config: Config, width: int, parameters: int, processes: int) -> list[str]:
    """A line on what healing reads and holds; ``width`` is that of the states, ``parameters`` are those of the dense
    model and the pruned one together."""
    if config.train.heal == "none":
        return []
    tokens = config.train.healing.sequences * config.train.healing.length
    states = 2 * 4 * width * -(-tokens // processes)
    weights = parameters * getattr(torch, config.model.dtype).itemsize
    return [
        f"train.heal {config.train.heal}: before the first step both models read {tokens:,} tokens; of the host's "
        f"memory each process takes {of_bytes(weights)} for their weights and {of_bytes(states)} for their states"
    ]
