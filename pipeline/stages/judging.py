"""One model judged, whoever asks: how it is loaded, what it is, and its perplexity of every text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pipeline.config import Config
from pipeline.evaluation.figures import Figures, hash_rows
from pipeline.evaluation.perplexity import perplexity
from pipeline.evaluation.resident import Stored
from pipeline.evaluation.tasks.definitions import Asked
from pipeline.evaluation.tasks.scores import Judged
from pipeline.evaluation.windows import TextRows
from pipeline.loading import loading, spread
from pipeline.model.head import find_head
from pipeline.model.load import model_files
from pipeline.world import World


def stored_model(config: Config, folder: Path, world: World, scratch: Path) -> Stored:
    """The model in ``folder`` and how it is loaded where this process computes; every process asks. ``scratch`` takes
    what does not fit into memory."""
    dispatch = spread(config, folder, config.model.dtype, world, scratch)
    return Stored(folder, **loading(config, config.model.dtype), dispatch=dispatch)


def what_it_is(config: Config, folder: Path, hash_of: Callable[[Path], str]) -> dict[str, Any]:
    """All of a model that its figures depend on: the sha256 of its files by name, and how it is loaded."""
    return {"files": {path.name: hash_of(path) for path in model_files(folder)}, **loading(config, config.model.dtype)}


def asked_tasks(config: Config) -> Asked:
    """The tasks that the three models are asked."""
    tasks = config.evaluate.tasks
    return Asked(tasks.names, tasks.limit, tasks.shots, tasks.data)


def task_words(judged: Judged) -> str:
    """Each task's figure, in a line."""
    return ", ".join(f"{task} {entry['value']:.3f}" for task, entry in judged.entries.items())


def perplexity_words(perplexities: Mapping[str, Mapping[str, Any]]) -> str:
    """The perplexity of each text, in a line."""
    return "perplexity of " + ", ".join(f"{text} {found['value']:.2f}" for text, found in perplexities.items())


def perplexities(
    config: Config,
    model: PreTrainedModel,
    identity: Mapping[str, Any],
    texts: Mapping[str, TextRows],
    figures: Figures,
    world: World,
) -> dict[str, dict[str, Any]]:
    """Of each text the model's perplexity, and how it was measured; ``identity`` is ``what_it_is`` of the model."""
    micro_batch, head = config.evaluate.micro_batch, find_head(model)
    settings = {"micro_batch": micro_batch, "device": world.device, "head": head, "world": world}

    def measure(text: TextRows) -> dict[str, Any]:
        fixed = {"model": identity, "rows": hash_rows(text), "micro_batch": micro_batch}
        return figures.of(fixed, lambda: perplexity(model, text.rows, counted_from=text.counted_from, **settings))

    return {name: {**measure(text), **text.about, "micro_batch": micro_batch} for name, text in texts.items()}
