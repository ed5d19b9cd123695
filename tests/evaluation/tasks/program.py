"""Run for the tests of shared batches: what one, two and three processes find of the tasks in FOLDER, and who computed.

torch and lm-eval are imported once, and the processes are forked from here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lm_eval.api import metrics
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.evaluation.tasks import scores
from pipeline.evaluation.tasks.definitions import Asked, require_tasks
from pipeline.evaluation.tasks.scores import Tasks
from pipeline.world import World

BOOTSTRAP = metrics.bootstrap_stderr


def judged(model: Path, data: Path, folder: Path, world: World) -> dict[str, Any]:
    """Entries and items of the tasks, and the batches at which this process was at work."""
    torch.set_num_threads(1)
    tasks, at, drawn = Tasks(asked(data), 4, folder / "tasks", folder / "answers", world), [], []

    def draw(*arguments: Any, **how: Any) -> float:
        drawn.append(1)
        return BOOTSTRAP(*arguments, **how)

    # As many draws as lm-eval's default would take minutes.
    with patch.object(scores, "DRAWS", 100), patch.object(metrics, "bootstrap_stderr", draw):
        found = tasks.judge(
            "one",
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            AutoTokenizer.from_pretrained(model),
            at.append,
        )
    return {"entries": found.entries, "items": found.items, "at": at, "drawn": len(drawn)}


def asked(data: Path) -> Asked:
    """Choices of texts and of a token, an error that must be drawn, and what is generated."""
    return Asked(("arc_easy", "boolq", "lambada_openai", "sums"), limit=12, data=data)


def work(rank: int, size: int, model: Path, data: Path, folder: Path) -> None:
    """One of ``size`` processes, its findings to FOLDER/RANK.json."""
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    found = judged(model, data, folder, World(rank, size, control=distributed.group.WORLD))
    (folder / f"{rank}.json").write_text(json.dumps(found))


def main() -> None:
    """Processes of each number, one after the other."""
    model, data, folder = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    # LAMBADA is looked for among all of lm-eval's tasks: once, for the forks too.
    require_tasks(asked(data))
    for size in (1, 2, 3):
        own = folder / str(size)
        own.mkdir()
        ranks = []
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    work(rank, size, model, data, own)
                    status = 0
                finally:
                    os._exit(status)
            ranks.append(pid)
        if any(os.waitpid(pid, 0)[1] for pid in ranks):
            sys.exit(f"one of {size} processes failed")


if __name__ == "__main__":
    main()
