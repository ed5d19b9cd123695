"""The sweep in one process and in two: benchmarks/scoring.py's figure (e).

Two processes are started once, each with a core and one thread of its own and with the model loaded. In turns, the
first sweeps all sequences while the other waits, and both sweep a half and add up their losses over gloo, as the score
stage does. Starting and loading are not counted.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import distributed, multiprocessing

from pipeline.importance.sweep import removal_losses
from pipeline.model.blocks import find_blocks
from pipeline.model.load import load_model

PROCESSES = 2


def one_and_two_processes(model: Path, dtype: str, sequences: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Median seconds of ``one`` and ``two`` processes, their ratio, and the cores that were there.

    ``sequences`` (S, T) int64 on the CPU. ``largest_difference`` is that of a block's mean token loss between the two.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(
            _work, args=(folder, str(model), dtype, sequences.tolist(), repeats), nprocs=PROCESSES, join=True
        )
        return json.loads(Path(folder, "figures.json").read_text())


def _work(rank: int, folder: str, model_folder: str, dtype: str, sequences: list[list[int]], repeats: int) -> None:
    """What one of the processes does; the first writes the figures."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    model = load_model(Path(model_folder), dtype=dtype, attention="sdpa")
    ids = torch.tensor(sequences)
    every = {"one": [ids, ids[:0]], "two": [ids[0::2], ids[1::2]]}
    removal_losses(model, ids[:1])  # warms the kernels up
    seconds: dict[str, list[float]] = {name: [] for name in every}
    totals = {}
    for _ in range(repeats):
        for name, shares in every.items():
            distributed.barrier()
            begin = perf_counter()
            total = torch.zeros(len(find_blocks(model)) + 1, dtype=torch.float64)
            for row in shares[rank]:
                total += removal_losses(model, row[None]).sum(dim=1)
            distributed.all_reduce(total)
            seconds[name].append(perf_counter() - begin)
            totals[name] = total / (len(ids) * (ids.shape[1] - 1))
    if rank == 0:
        one, two = (median(seconds[name]) for name in every)
        difference = (totals["one"] - totals["two"]).abs().max().item()
        figures = {"one": one, "two": two, "speedup": one / two, "cores": len(cores), "largest_difference": difference}
        Path(folder, "figures.json").write_text(json.dumps(figures))
    distributed.barrier()
    distributed.destroy_process_group()
