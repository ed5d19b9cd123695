"""What an export of training is asked, by itself: perplexities of every text, and tasks; the same for every export."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import RegrowError
from pipeline.evaluation.figures import Figures, hash_rows
from pipeline.evaluation.memory import give_back
from pipeline.evaluation.tasks.definitions import Asked, data_files, harness, require_tasks
from pipeline.evaluation.tasks.scores import Tasks
from pipeline.evaluation.windows import TextRows
from pipeline.files import hash_file, hash_json
from pipeline.inputs import Inputs, read_encoder
from pipeline.judged import check_judged_texts, held_out_text, judged_texts
from pipeline.life import Teller
from pipeline.loading import loading, offloaded
from pipeline.model.files import weights_hash
from pipeline.model.load import model_files
from pipeline.run import Run
from pipeline.stages.curve import working_folder
from pipeline.stages.during import asked_during
from pipeline.stages.judging import asked_tasks, perplexities, perplexity_words, stored_model, task_words, what_it_is
from pipeline.world import World

#: The held-out rows as the training loop judges them: no text of a config can have this name.
IN_TRAINING = "held_out in training"


def asked_of_exports(config: Config) -> Asked:
    """The tasks that exports are asked: those of evaluate.during, where it is in use, so that both make one line."""
    during = config.evaluate.during
    return asked_during(config) if during.every or during.tasks else asked_tasks(config)


def check_exam(config: Config, export: Path) -> list[str]:
    """Lines on what exports will be asked. RegrowError where that cannot be, as stage evaluate's check says it."""
    if config.data.held_out is None:
        raise RegrowError("data.held_out is not set, so there is nothing to compute an export's perplexity on; set it")
    return [*require_tasks(asked_of_exports(config)), *check_judged_texts(config, read_encoder(config, export))]


@dataclass(frozen=True)
class Sitting:
    """An export that is to be judged: what it is, and the ``stamp`` of its files, to see that it stays that."""

    export: Path
    identity: dict[str, Any]
    stamp: list[tuple[int, int]]

    @property
    def step(self) -> int:
        """The step of training that it is of."""
        return int(self.export.name.rpartition("-")[2])

    @property
    def sha256(self) -> str:
        """One hash for all files of weights."""
        return weights_hash(self.export, lambda path: self.identity["files"][path.name])

    @property
    def label(self) -> str:
        """A name that other weights of the same step do not have."""
        return f"{self.export.name}-{self.sha256[:8]}"

    def require_unchanged(self) -> None:
        """RegrowError where the export's files are not those that were there before it was judged."""
        if not self.export.is_dir() or stamp_of(self.export) != self.stamp:
            raise RegrowError(
                f"{self.export}: written anew, or moved, while it was judged; start the same command again"
            )


def stamp_of(export: Path) -> list[tuple[int, int]]:
    """Number and time of change of each of a model's files."""
    return [(status.st_ino, status.st_mtime_ns) for status in map(Path.stat, model_files(export))]


class Exam:
    """What exports are asked, made once for all of them. Every process makes it, and calls ``judge`` in the same order.

    ``protocol`` names by a hash all that figures of two exports must share to stand on one line.
    """

    def __init__(self, config: Config, run: Run, export: Path, world: World, say: Teller):
        self._config, self._world = config, world
        text = Inputs(config, run, export)
        self._texts, self._left_out = world.on_first(lambda: self._read(text, say))
        asked = asked_of_exports(config)
        self.protocol = hash_json(
            {
                "texts": {name: hash_rows(one) for name, one in self._texts.items()},
                "micro_batch": config.evaluate.micro_batch,
                "tasks": [asked.tasks, asked.limit, asked.shots, config.evaluate.tasks.batch],
                "harness": harness() if asked.tasks else None,
                "data": {path.name: hash_file(path) for path in data_files(asked)},
                "loading": loading(config, config.model.dtype),
            }
        )
        self._folder = working_folder(run) / self.protocol[:16]
        self._tasks = None
        if asked.tasks:
            folder = self._folder / "tasks"
            self._tasks = Tasks(asked, config.evaluate.tasks.batch, folder, self._folder, world)

    def _read(self, text: Inputs, say: Teller) -> tuple[dict[str, TextRows], dict[str, str]]:
        """Every text as stage evaluate has it, and the held-out rows as the training loop does."""
        texts, left_out = judged_texts(text, say)
        config = self._config
        texts[IN_TRAINING] = held_out_text(text, config.data.row_length, "document", config.train.evaluate_rows)
        return texts, left_out

    def sitting(self, export: Path) -> Sitting:
        """An export as it is now."""
        stamp = stamp_of(export)
        return Sitting(export, what_it_is(self._config, export, hash_file), stamp)

    def judge(self, sitting: Sitting, say: Teller) -> dict[str, Any]:
        """``perplexity`` by text, ``left_out`` (texts that could not be had), ``tasks``, and the ``device``. What was
        finished before a kill is taken as it is."""
        config, world = self._config, self._world
        figures = Figures(self._folder / sitting.label / "figures", world)
        scratch = self._folder / sitting.label
        say.at(f"{sitting.export.name}: perplexities")
        model = stored_model(config, sitting.export, world, scratch).load(world.device)
        found = perplexities(config, model, sitting.identity, self._texts, figures, world)
        say(f"{sitting.export.name}: {perplexity_words(found)}")
        entries: dict[str, Any] = {}
        if self._tasks is not None:
            tokenizer = read_encoder(config, sitting.export).tokenizer
            judged = self._tasks.judge(sitting.label, model, tokenizer, say.at)
            entries = judged.entries
            say(f"{sitting.export.name}: {task_words(judged)}")
        del model
        give_back(world.device)
        shutil.rmtree(offloaded(scratch, world), ignore_errors=True)
        return {"perplexity": found, "left_out": self._left_out, "tasks": entries, "device": str(world.device)}

    def clear(self, sitting: Sitting) -> None:
        """Forget what was kept for a resume."""
        shutil.rmtree(self._folder / sitting.label, ignore_errors=True)
