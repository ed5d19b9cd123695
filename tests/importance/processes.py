"""Run by test_scoring.py: scores in as many processes as the arguments say, one after another, as lines of JSON.

torch is imported once and the processes are forked from here, which costs a tenth of starting each from nothing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed

from pipeline.criteria import CRITERIA
from pipeline.importance.criteria import Settings
from pipeline.importance.cut import Cut
from pipeline.importance.greedy import greedy_rounds
from pipeline.importance.ppl import perplexity_without
from pipeline.importance.scoring import score_blocks
from pipeline.world import World
from tests.families import VOCABULARY, build

#: Built before the forks: transformers imports much of itself for that.
MODEL = build("llama")


def work(rank: int, world: int, meeting: str) -> dict:
    """What one of ``world`` processes finds for its share of the sequences."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    all_of_them = World(rank, world, control=distributed.group.WORLD)
    ids = torch.randint(0, VOCABULARY, (32, 16), generator=torch.Generator().manual_seed(0))
    share = ids.chunk(world)[rank].split(2)
    entries = score_blocks(MODEL, ids.split(2), CRITERIA, Settings(linear_lengths=(2,)), world=all_of_them)
    rounds = greedy_rounds(MODEL, share, Cut(remove=2, protect_first=1, protect_last=1), world=all_of_them)
    found = {
        "entries": entries,
        "greedy": [one.removed for one in rounds],
        "without": perplexity_without(MODEL, share, [2, 3], all_of_them),
    }
    distributed.destroy_process_group()
    return found


def in_processes(world: int) -> dict:
    """Rank 0's result; RuntimeError when a process fails."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    found = work(rank, world, f"{folder}/meeting")
                    if rank == 0:
                        Path(folder, "found.json").write_text(json.dumps(found))
                    status = 0
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            children.append(child)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        if any(statuses):
            raise RuntimeError(f"processes of {world} ended with {statuses}")
        return json.loads(Path(folder, "found.json").read_text())


if __name__ == "__main__":
    print(json.dumps([in_processes(int(world)) for world in sys.argv[1:]]))
