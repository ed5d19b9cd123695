"""Tasks between the steps of training: asked by the processes that train, of the weights as they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.tokens import load_tokenizer
from pipeline.errors import RegrowError
from pipeline.evaluation.tasks.definitions import Asked, require_tasks
from pipeline.evaluation.tasks.scores import Tasks
from pipeline.life import Teller
from pipeline.run import Run
from pipeline.training.engine import Engine
from pipeline.training.export import Origin
from pipeline.world import World

#: Of a task's entry, what its line keeps.
KEPT = ("metric", "share", "value", "stderr", "items", "shots", "output", "sha256")


def require_during(config: Config, elsewhere: bool = False) -> list[str]:
    """Lines on the tasks that are asked between steps. RegrowError where they cannot be; ``elsewhere``: on another
    machine, which may have more."""
    if not config.evaluate.during.every:
        return []
    if config.train.zero_stage == 3:
        raise RegrowError(
            "evaluate.during with train.zero_stage 3: the model stands nowhere whole, and each process answers other "
            "requests; set evaluate.during.every to null and train.export_every to its steps, and judge the exports "
            "while training goes on: regrow evaluate CONFIG --export all; or train under ZeRO 1 or 2"
        )
    return [] if elsewhere else require_tasks(asked_during(config))


def tasks_during(
    config: Config, run: Run, origin: Origin, world: World, say: Teller
) -> Callable[[Engine, int, Callable[[], None]], dict[str, Any]] | None:
    """What asks the tasks of evaluate.during at a step; None where none are wanted. Every process calls it."""
    if not config.evaluate.during.every:
        return None
    folder, batch = run.stage("train"), config.evaluate.tasks.batch
    kept = folder / "progress" / "answers"
    tasks = Tasks(asked_during(config), batch, folder / "tasks", kept, world)
    tokenizer = load_tokenizer(origin.folder, origin.trust_remote_code)

    def ask(engine: Engine, step: int, between: Callable[[], None]) -> dict[str, Any]:
        # A killed run comes here again with other weights, if it goes on in another layout.
        world.on_first(lambda: shutil.rmtree(kept, ignore_errors=True))
        # Every length of a batch would be compiled anew.
        with torch.compiler.set_stance("force_eager"):
            entries = tasks.judge(f"step-{step:08d}", engine.model, tokenizer, say.at, between).entries
        return {task: {name: entry[name] for name in KEPT} for task, entry in entries.items()}

    return ask


def asked_during(config: Config) -> Asked:
    """What is asked between the steps of training."""
    during, tasks = config.evaluate.during, config.evaluate.tasks
    return Asked(during.names, during.limit, tasks.shots, tasks.data)
