"""What tasks say of a model: every metric with its error, and of each item whether it was answered well."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.perplexity import evaluating
from pipeline.evaluation.tasks.answers import Answers
from pipeline.evaluation.tasks.definitions import SHORTENED_LLM, Asked, harness, write_definitions
from pipeline.evaluation.tasks.loading import load_tasks, quiet
from pipeline.world import World

#: The seed of the draw of examples that are shown before an item: lm-eval's own.
SHOTS_SEED = 1234
#: Draws of the bootstrap that gives errors to metrics without a formula for one: lm-eval's own number.
DRAWS = 100_000
#: Metrics that are shares of the items, so that higher is better and a hundred is all: such a one judges a task.
SHARES = ("acc", "acc_norm", "exact_match", "em", "f1")


@dataclass(frozen=True)
class Judged:
    """What came out for one model: by task its ``entry`` of results.json, and by task the ``items``' values of the
    metric that it is judged by, in the items' order."""

    entries: dict[str, Any] = field(default_factory=dict)
    items: dict[str, list[float]] = field(default_factory=dict)


class Tasks:
    """Tasks whose definitions and data are read, to be asked of one model after the other.

    ``folder`` takes the definitions, ``kept`` the answers as they are given. Every process constructs it.
    """

    def __init__(self, asked: Asked, batch: int, folder: Path, kept: Path, world: World):
        self._limit, self._batch, self._kept, self._world = asked.limit, batch, kept, world
        world.on_first(lambda: write_definitions(asked, folder))
        with quiet():
            # One process makes datasets' files, and the others find them.
            if world.rank == 0:
                self._tasks = load_tasks(folder, asked.tasks)
            world.barrier()
            if world.rank != 0:
                self._tasks = load_tasks(folder, asked.tasks)
        for task in self._tasks["tasks"].values():
            task.set_fewshot_seed(seed=SHOTS_SEED)

    def judge(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        at: Callable[[str], None],
        between: Callable[[], None] = lambda: None,
    ) -> Judged:
        """Ask all of a model, which stands in memory whole; ``name`` is its answers' folder. The same everywhere.

        ``between`` is called before each batch, on every process as often: what it raises gives all of it up."""
        from lm_eval.evaluator import evaluate

        from pipeline.evaluation.tasks.shared import SharedModel

        # Errors of metrics that have no formula for one are drawn, by the first process for all.
        draws = DRAWS if self._world.rank == 0 else 0
        answers = Answers(self._kept / name, self._world.rank)
        with contextlib.closing(answers), evaluating(model), quiet():
            asked = SharedModel(
                model,
                tokenizer,
                batch=self._batch,
                world=self._world,
                answers=answers,
                at=lambda what: at(f"{name}: tasks, {what}"),
                between=between,
            )
            found = evaluate(asked, self._tasks, limit=self._limit, log_samples=True, bootstrap_iters=draws)
        judged = Judged()
        for task in self._tasks["tasks"]:
            entry, items = _entry(task, found["results"][task], found["samples"][task])
            entry |= {
                "output": self._tasks["tasks"][task].OUTPUT_TYPE,
                "shots": self._tasks["tasks"][task].config.num_fewshot or 0,
                "batch": self._batch,
                "bos": _adds_bos(tokenizer),
                "harness": harness(),
            }
            judged.entries[task], judged.items[task] = entry, items
        return self._world.broadcast(judged)


def _entry(task: str, results: dict[str, Any], samples: list[dict[str, Any]]) -> tuple[dict[str, Any], list[float]]:
    """A task's entry, and its items' values of the metric that it is judged by."""
    metrics = {}
    for name, value in results.items():
        metric, comma, source = name.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = results.get(f"{metric}_stderr,{source}")
            metrics[metric if source == "none" else f"{metric}, {source}"] = {
                "value": value,
                "stderr": error if isinstance(error, float) else None,
            }
    shares = [name for name in metrics if name.partition(", ")[0] in SHARES]
    chosen = SHORTENED_LLM.get(task) or next(iter(shares or metrics))
    metric, _, source = chosen.partition(", ")
    own = sorted((one for one in samples if one["filter"] == (source or "none")), key=lambda one: one["doc_id"])
    values = [one[metric] for one in own]
    items = [float(value) for value in values if isinstance(value, int | float)]
    documents = hashlib.sha256("".join(one["doc_hash"] for one in own).encode()).hexdigest()
    told = {"metric": chosen, "share": chosen in shares, **metrics[chosen]}
    entry = {**told, "items": len(own), "metrics": metrics, "sha256": documents}
    return entry, items if len(items) == len(values) else []


def mean_of(entries: dict[str, Any]) -> dict[str, Any] | None:
    """Mean of the seven tasks of Shortened LLM, with the standard error of a mean of independent figures; None where
    one of them was not asked."""
    seven = [entries[task] for task in SHORTENED_LLM if task in entries]
    if len(seven) < len(SHORTENED_LLM):
        return None
    errors = [one["stderr"] for one in seven]
    return {
        "value": math.fsum(one["value"] for one in seven) / len(seven),
        "stderr": None if None in errors else math.sqrt(math.fsum(error**2 for error in errors)) / len(seven),
        "of": list(SHORTENED_LLM),
    }


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a BOS before a text by itself, as lm-eval lets it."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id is not None
