"""Run for the tests of importance: what as many processes as the arguments say find, one number after another, as JSON.

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
from pipeline.importance.batch_major import Wanted, sweep_by_batch
from pipeline.importance.criteria import Settings
from pipeline.importance.cut import Cut
from pipeline.importance.greedy import greedy_rounds
from pipeline.importance.kept import Kept
from pipeline.importance.ppl import perplexity_without
from pipeline.importance.scoring import score_blocks
from pipeline.world import World
from tests.families import VOCABULARY, build

#: Built before the forks: transformers imports much of itself for that.
MODEL = build("llama")


def keep(kept: Kept, world: World) -> dict:
    """What all processes see of what each has put, in the order of their ranks."""
    kept.put(f"share-{world.rank}", [world.rank, world.rank / 3])
    kept.meet()
    met = [kept.get(f"share-{rank}") for rank in range(world.size)]
    if world.rank == 0:
        kept.put("known", "of rank 0")
    known = world.gather(kept.known("known", f"unknown to {world.rank}"))
    once = world.gather(kept.once("once", lambda: f"made by {world.rank}"))
    again = world.gather(kept.once("once", lambda: "made again"))
    return {"met": met, "known": known, "once": once, "again": again}


def work(rank: int, world: int, meeting: str) -> dict:
    """What one of ``world`` processes finds for its share of the sequences."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    all_of_them = World(rank, world, control=distributed.group.WORLD)
    ids = torch.randint(0, VOCABULARY, (32, 16), generator=torch.Generator().manual_seed(0))
    share = ids.chunk(world)[rank].split(2)
    entries = score_blocks(MODEL, ids.split(2), CRITERIA, Settings(linear_lengths=(2,)), world=all_of_them)
    rounds = greedy_rounds(MODEL, share, Cut(remove=2, protect_first=1, protect_last=1), world=all_of_them)
    losses, distances = sweep_by_batch(
        MODEL,
        ids[:7],
        Wanted(position=-1),
        kept=Kept(None, all_of_them),
        micro_batch=2,
        world=all_of_them,
        say=lambda line: None,
    )
    found = {
        "kept": {
            "files": keep(Kept(Path(f"{meeting}-kept"), all_of_them), all_of_them),
            "memory": keep(Kept(None, all_of_them), all_of_them),
        },
        "swept": {"losses": losses.tolist(), "distances": distances.to_json()},
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
