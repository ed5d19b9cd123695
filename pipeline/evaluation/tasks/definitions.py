"""Definitions of tasks: lm-eval's own, written down with what a config changes in them, as yaml that lm-eval reads too.

What a task is (prompt, choices, metrics) stays lm-eval's: a file here includes its file there. Changed are the data,
where a folder of them is given, and the number of examples before each item. lm-eval 0.4.13 reads a split of examples
even where none are shown, so that a split that is not there is replaced by the one that is evaluated.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import RegrowError
from pipeline.evaluation.tasks import sums
from pipeline.evaluation.tasks.loading import fetch_data, read_data
from pipeline.files import write_atomic

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

#: The seven tasks of Shortened LLM (arXiv 2402.02834, section 4.1), and the metric that it gives of each.
SHORTENED_LLM = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
PRESETS = {"shortened-llm": tuple(SHORTENED_LLM)}
#: Where lm-eval keeps their definitions: looking for them among its 14,000 takes 5 seconds.
PLACES = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
}
#: Endings of data files, and datasets' name for what reads them.
READERS = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet"}
#: Keys of definitions whose data come from code, and not from where a file says.
MADE_BY_CODE = {
    "class": "defines it by a class of Python",
    "custom_dataset": "makes its items by code (custom_dataset)",
}
INSTALL = "pip install -c launch/constraints.txt -e '.[eval]', or bash launch/setup.sh"


class Asked(NamedTuple):
    """What a config asks of tasks: their names, presets among them; the items of each, None for all; the examples
    before each item, None for as many as its definition says; and the folder of their data, None for the hub's."""

    names: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    data: Path | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, each once."""
        return tuple(dict.fromkeys(task for name in self.names for task in PRESETS.get(name, (name,))))


def harness() -> str:
    """What asks the tasks, with its version."""
    return f"lm-eval {version('lm-eval')}"


def require_tasks(asked: Asked) -> list[str]:
    """Lines on the tasks whose data came from the hub, which are fetched now, or found in the library's cache, and on
    what does not count. Data that are given as files are read.

    RegrowError where lm-eval is not installed, a task is not known, or data are missing, or not what the task needs."""
    if not asked.tasks:
        return []
    if not find_spec("lm_eval"):
        raise RegrowError(f"evaluate.tasks: lm-eval is not installed; {INSTALL}")
    if asked.data is not None and not asked.data.is_dir():
        raise RegrowError(f"evaluate.tasks.data: there is no folder {asked.data}")
    for task in asked.tasks:
        _definition(task, asked)
    lines = []
    if sums.NAME in asked.tasks and asked.shots is not None:
        lines.append(f"evaluate.tasks.shots: not for {sums.NAME}, whose items show {sums.SHOWN} each, always")
    named = tuple(task for task in asked.tasks if task != sums.NAME)
    if not named:
        return lines
    with tempfile.TemporaryDirectory() as folder:
        write_definitions(asked._replace(names=named), Path(folder))
        if asked.data is not None:
            read_data(Path(folder), {task: _data_file(asked.data, task) for task in named})
            return lines
        fetch_data(Path(folder), named)
    return [*lines, f"evaluate.tasks: data of {', '.join(named)} from the hub are here"]


def data_files(asked: Asked) -> list[Path]:
    """The files of the tasks' data, and of the examples that are shown, where a folder of them is given."""
    if asked.data is None:
        return []
    names = (name for task in asked.tasks for name in (task, f"{task}.train"))
    return [path for name in names if (path := _find_data(asked.data, name)) is not None]


def write_definitions(asked: Asked, folder: Path) -> None:
    """Write each task's definition to ``folder``/TASK.yaml, for lm-eval's --include_path, and the data of sums."""
    folder.mkdir(parents=True, exist_ok=True)
    if sums.NAME in asked.tasks:
        sums.write_items(folder)
        write_atomic(folder / f"{sums.NAME}.yaml", _yaml(sums.definition(), custom_dataset=f"{sums.READER}.load"))
    for task in asked.tasks:
        if task != sums.NAME:
            write_atomic(folder / f"{task}.yaml", _yaml(_definition(task, asked)))


def _definition(task: str, asked: Asked) -> dict[str, Any]:
    """What is written down of a task of lm-eval's."""
    if task == sums.NAME:
        return {}
    path = _find(task)
    known = _read(path)
    shots = known.get("num_fewshot") or 0 if asked.shots is None else asked.shots
    definition: dict[str, Any] = {"include": str(path), "task": task, "num_fewshot": shots}
    if asked.data is None:
        return definition
    for key, what in MADE_BY_CODE.items():
        if known.get(key):
            raise RegrowError(
                f"evaluate.tasks.data: {task} takes no data from a folder, because lm-eval {what}; leave it out of "
                "evaluate.tasks.names, or evaluate.tasks.data unset"
            )
    data = _data_file(asked.data, task)
    split = known.get("test_split") or known.get("validation_split")
    examples = _find_data(asked.data, f"{task}.train")
    if shots and examples is None and not (known.get("fewshot_config") or {}).get("samples"):
        raise RegrowError(
            f"evaluate.tasks: {task} shows {shots} examples before each item, and {asked.data} has no "
            f"{task}.train.jsonl to take them from; put it there, set evaluate.tasks.shots to 0, or take a task whose "
            "examples stand in its definition, as those of gsm8k_cot, whose data must be there as gsm8k_cot.jsonl"
        )
    files = {split: str(data)} | ({"train": str(examples)} if examples else {})
    definition |= {
        "dataset_path": READERS[_ending(data)],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": "train" if examples else None,
        "validation_split": split if split == known.get("validation_split") else None,
        "test_split": split if split == known.get("test_split") else None,
    }
    if known.get("fewshot_split"):
        definition["fewshot_split"] = "train" if examples else split
    return definition


def _find(task: str) -> Path:
    """The file of lm-eval's in which a task is defined."""
    home = Path(find_spec("lm_eval").origin).parent / "tasks"
    path = home / PLACES.get(task, "")
    if path.is_file() and _read(path).get("task") == task:
        return path
    manager = _all_tasks()
    entry = manager.task_index.get(task)
    if entry is None:
        near = get_close_matches(task, manager.all_subtasks, 5)
        like = f"; there are {', '.join(near)}" if near else "; lm_eval ls tasks shows all"
        raise RegrowError(f"evaluate.tasks.names: lm-eval has no task {task!r}{like}")
    if task not in manager.all_subtasks:
        members = [name for name in manager.all_subtasks if name.startswith(f"{task}_")][:5]
        raise RegrowError(
            f"evaluate.tasks.names: {task} is a group of tasks; name those that are wanted"
            + (f", such as {', '.join(members)}" if members else "")
        )
    return entry.yaml_path


@cache
def _all_tasks() -> TaskManager:
    """lm-eval's list of all tasks: seconds, once."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _read(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(path, resolve_func=False)


def _data_file(folder: Path, task: str) -> Path:
    found = _find_data(folder, task)
    if found is None:
        raise RegrowError(
            f"evaluate.tasks.data: {folder} has no data of {task}: none of "
            f"{', '.join(f'{task}{ending}' for ending in READERS)}"
        )
    return found


def _find_data(folder: Path, name: str) -> Path | None:
    paths: Iterable[Path] = (folder / f"{name}{ending}" for ending in READERS)
    return next((path.resolve() for path in paths if path.is_file()), None)


def _ending(path: Path) -> str:
    return next(ending for ending in READERS if path.name.endswith(ending))


def _yaml(definition: dict[str, Any], **functions: str) -> str:
    """A yaml file, of a mapping whose values are written as JSON, which yaml reads, and of ``functions`` in files of
    code beside it."""
    lines: Sequence[str] = [
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in definition.items()),
        *(f"{key}: !function {name}" for key, name in functions.items()),
    ]
    return "\n".join(["# What was evaluated, for lm-eval's own command line too: --include_path FOLDER", *lines, ""])
