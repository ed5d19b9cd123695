"""Ranks that read rows as training does: steps of 12 rows, and after each the position, gathered, in a file.

``python -m tests.data.reading FOLDER WORLD STEPS WORKERS``. FOLDER has manifest.json; state.json, where there is one,
is where the ranks go on. Rank 0 writes log.jsonl: for each step the rows that all ranks have read. The ranks are
forked, since importing torch takes longer than all that they do.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import torch.distributed

from pipeline.data.shards import read_manifest
from pipeline.data.stream.loader import load_rows
from pipeline.data.stream.position import from_json, to_json
from pipeline.files import read_json, write_json
from pipeline.launch import die_with_parent
from tests.data.corpora import LANES, cursors_behind, digest, stream


def read(rank: int, processes: int, folder: Path, steps: int, workers: int) -> None:
    die_with_parent()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting-{os.getppid()}", rank=rank, world_size=processes
    )
    shards, _ = read_manifest(read_json(folder / "manifest.json"))
    state = folder / "state.json"
    step, cursors = 0, {}
    if state.exists():
        found = read_json(state)
        step = found["step"]
        cursors = {lane: cursor for lane, cursor in from_json(found["cursors"]).items() if lane % processes == rank}
    rows = load_rows(
        stream(shards, folder / "cache", rank=rank, processes=processes, start=step * LANES, cursors=cursors),
        workers,
        die_with_parent,
    )
    while step < steps:
        taken = [next(rows) for _ in range(LANES // processes)]
        step, cursors = step + 1, cursors_behind(taken, cursors)
        shares: list = [None] * processes
        torch.distributed.all_gather_object(shares, ([(row.index, digest(row)) for row in taken], cursors))
        if rank == 0:
            with (folder / "log.jsonl").open("a") as log:
                rows_of = [share[0] for share in shares]
                log.write(json.dumps({"step": step, "processes": processes, "rows": rows_of}) + "\n")
            write_json(
                state, {"step": step, "cursors": to_json({k: v for share in shares for k, v in share[1].items()})}
            )
            time.sleep(0.02)  # as a step of training would


if __name__ == "__main__":
    folder, (processes, steps, workers) = Path(sys.argv[1]), map(int, sys.argv[2:])
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=read, args=(rank, processes, folder, steps, workers)) for rank in range(processes)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))
