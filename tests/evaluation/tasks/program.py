"""Run for the tests of shared batches: what one, two and three processes find of the tasks in FOLDER, and who computed.

torch and lm-eval are imported once, and the processes are forked from here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.evaluation.tasks.definitions import Asked
from pipeline.evaluation.tasks.scores import Tasks
from pipeline.world import World


def judged(model: Path, data: Path, folder: Path, world: World) -> dict[str, Any]:
    """Entries and items of the tasks, and the batches at which this process was at work."""
    torch.set_num_threads(1)
    asked = Asked(("arc_easy", "boolq", "sums"), limit=12, data=data)
    tasks, at = Tasks(asked, 4, folder / "tasks", folder / "answers", world), []
    found = tasks.judge(
        "one",
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(model),
        at.append,
    )
    return {"entries": found.entries, "items": found.items, "at": at}


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
