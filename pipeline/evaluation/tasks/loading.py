"""Tasks as lm-eval loads them: definitions from a folder; data from files, the library's cache or the hub."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.shards import without_secrets
from pipeline.errors import RegrowError, first_line

#: Has lm-eval draw in one process.
NO_POOL = "DISABLE_MULTIPROC"
#: Items that are tried of a file of data, before any work.
FIRST = 8


def load_tasks(folder: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """Those of the tasks that are defined in ``folder``, with their data, as lm-eval's evaluator takes them."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False).load(list(tasks))


def fetch_data(folder: Path, tasks: Sequence[str]) -> None:
    """Have the hub's data of the tasks that are defined in ``folder`` in the library's cache. RegrowError where a
    task's data can be had neither from the hub nor from that cache."""
    for task in tasks:
        with _told(
            f"evaluate.tasks: the data of {task} cannot be had",
            "start once where the hub is reached and with the same HF_HOME, or set evaluate.tasks.data to a folder "
            f"with {task}.jsonl",
        ):
            load_tasks(folder, [task])


def read_data(folder: Path, files: Mapping[str, Path]) -> None:
    """Read each task's file whole, and ask the task, as ``folder`` defines it, for the requests and the answers of its
    first items. RegrowError where the file is damaged, or lacks what the task asks for."""
    for task, path in files.items():
        with _told(
            f"evaluate.tasks.data: {path}, or what is shown before its items, cannot be read as data of {task}",
            f"write it anew, whole, and with the fields that lm-eval's definition of {task} takes",
        ):
            (loaded,) = load_tasks(folder, [task])["tasks"].values()
            loaded.set_fewshot_seed(seed=0)
            loaded.build_all_requests(limit=FIRST)
            if loaded.config.doc_to_target is not None:
                for document in itertools.islice(loaded.eval_docs, FIRST):
                    loaded.doc_to_target(document)


@contextlib.contextmanager
def _told(what: str, way_out: str) -> Iterator[None]:
    """Quiet within it; an error of any kind is one of ``what``."""
    try:
        with quiet():
            yield
    # lm-eval and datasets pass on what their readers, templates, the hub's client and the network raise.
    except Exception as error:
        reason = f"{type(error).__name__}: {without_secrets(first_line(error))}"
        raise RegrowError(f"{what} ({reason}); {way_out}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the context lm-eval and datasets draw no bars, which a log takes for lines, and lm-eval does not warn."""
    import datasets
    from lm_eval.api import task

    # Of options that a model in memory would not heed, and of definitions that leave a default unsaid.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    bars, bar, pool = datasets.are_progress_bars_disabled(), task.tqdm, os.environ.get(NO_POOL)
    datasets.disable_progress_bars()
    task.tqdm = partial(bar, disable=True)
    # A bootstrap would fork a process for each core, of one that holds a GPU.
    os.environ[NO_POOL] = "1"
    try:
        yield
    finally:
        task.tqdm = bar
        if pool is None:
            del os.environ[NO_POOL]
        else:
            os.environ[NO_POOL] = pool
        if not bars:
            datasets.enable_progress_bars()
