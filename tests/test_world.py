"""What processes tell each other: a process alone, real processes over gloo, and tensors on GPUs over NCCL.

Run as a script, this file is one of the processes: ``test_world.py FOLDER RANK SIZE DEVICE``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.launch import TOLD, Place
from pipeline.world import ALONE, PATIENCE, World, lost_peer
from tests import ROOT


def one_process(folder: Path, rank: int, size: int, device: str) -> None:
    """Makes every call and writes what it gave; then rank 0 meets an error."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
    world = World.join(Place(rank, size, rank, size, "other"), use_gpu=device == "cuda")
    fine, whole = torch.tensor([1 + 2.0**-40, float(rank)], dtype=torch.float64), torch.arange(3) + rank
    found = {
        "place": [world.rank, world.size, world.on_this_machine, world.device.type],
        "gather": world.gather({"rank": rank}),
        "broadcast": world.broadcast([1, "two"] if rank == 0 else "not looked at"),
        "tensor": world.broadcast(torch.arange(4) if rank == 0 else None).tolist(),
        "on_first": world.on_first(lambda: f"made by {rank}"),
        "fine": world.sum(fine.clone()).tolist(),
        "whole": world.sum(whole.clone()).tolist(),
        "on_device": world.sum(fine.to(world.device, torch.float32)).tolist(),
        "half": world.sum(torch.full((2,), 0.5, dtype=torch.bfloat16, device=world.device)).tolist(),
    }
    library_s = torch.distributed.new_group(list(range(size)))
    world.be_patient()
    found["patience"] = [patience(group, world.device) for group in (torch.distributed.group.WORLD, library_s)]
    world.barrier()
    (folder / f"rank{rank}.json").write_text(json.dumps(found))

    def refuse() -> None:
        raise RegrowError("said once")

    try:
        world.on_first(refuse)
    except RegrowError as error:
        (folder / "said").write_text(f"{rank}: {error}")
    world.close()


def patience(group: Any, device: torch.device) -> float:
    """Seconds that a call to a group may wait."""
    return group._get_backend(device).options._timeout.total_seconds()


def together(folder: Path, size: int, device: str = "cpu") -> list[dict]:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(rank), str(size), device], cwd=ROOT, env=environment
        )
        for rank in range(size)
    ]
    statuses = [process.wait(120) for process in started]
    assert statuses == [0] + [TOLD] * (size - 1), f"the others end with status {TOLD}, found {statuses}"
    assert (folder / "said").read_text() == "0: said once"
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]


def check(found: list[dict], device: str) -> None:
    size = len(found)
    for rank, one in enumerate(found):
        assert one.pop("place") == [rank, size, size, device]
        assert one == {
            "gather": [{"rank": each} for each in range(size)],
            "broadcast": [1, "two"],
            "tensor": [0, 1, 2, 3],
            "on_first": "made by 0",
            # fp64 stays fp64 on the way: the low bits of each are in the sum.
            "fine": [size * (1 + 2.0**-40), sum(range(size))],
            "whole": [size * entry + sum(range(size)) for entry in range(3)],
            "on_device": [float(size), float(sum(range(size)))],
            "half": [size / 2] * 2,
            "patience": [PATIENCE.total_seconds()] * 2,
        }, f"rank {rank} of {size} was told otherwise"


def test_a_process_alone_gets_back_what_it_gave():
    values = torch.tensor([1.0, 2.0])
    assert (ALONE.rank, ALONE.size, ALONE.on_this_machine, ALONE.device) == (0, 1, 1, torch.device("cpu"))
    assert ALONE.gather("value") == ["value"] and ALONE.broadcast("value") == "value"
    assert ALONE.on_first(lambda: 3) == 3 and ALONE.sum(values) is values
    ALONE.barrier()
    ALONE.close()

    def refuse() -> None:
        raise RegrowError("said once")

    with pytest.raises(RegrowError, match="said once"):
        ALONE.on_first(refuse)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("[pair.cc:547] Connection closed by peer [10.0.0.2]:4242"), "connection closed by peer"),
        (
            RuntimeError("[pair.cc:537] Read error [10.0.0.2]:33463: Connection timed out. This is"),
            "connection timed out",
        ),
        (RuntimeError("[pair.cc:537] Read error [10.0.0.2]:33463: No route to host"), "no route to host"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), None),
        (OSError("Connection reset by peer"), None),
    ],
)
def test_an_error_says_whether_a_process_is_gone(error, words):
    """A server of shards that resets a connection is no process of ours."""
    assert lost_peer(error) == words


def test_three_processes_tell_each_other(tmp_path):
    check(together(tmp_path, 3), "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NCCL needs a GPU: test.sh -m gpu there")
def test_tensors_on_a_gpu_in_a_world_of_one(tmp_path):
    check(together(tmp_path, 1, "cuda"), "cuda")


@pytest.mark.gpus
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL refuses two ranks on one GPU: test.sh -m gpus on two")
def test_tensors_on_two_gpus(tmp_path):
    check(together(tmp_path, 2, "cuda"), "cuda")


WAITING = """
import sys
from datetime import timedelta
import torch
from pipeline import life
from pipeline.launch import Place
from pipeline.errors import RegrowError
from pipeline.world import World
life.FIRST = life.BETWEEN = 0.5
torch.distributed.constants.default_pg_timeout = timedelta(seconds=4)
begin = torch.distributed.init_process_group
torch.distributed.init_process_group = lambda *a, **k: begin(*a, **k, timeout=timedelta(seconds=4))
rank = int(sys.argv[1])
try:
    World.join(Place(rank, 3, rank % 2, 2, "other"), use_gpu=False)
except RegrowError as error:
    print(error)
"""


def test_who_waits_for_others_says_for_whom_and_where_and_gives_up_in_words():
    """Ranks 0 and 2 are the first of their machines; each waits at a port of its own, where nobody comes."""
    import socket

    waiting = {}
    with socket.socket() as one, socket.socket() as other:
        for rank, free in ((0, one), (2, other)):
            free.bind(("127.0.0.1", 0))
            waiting[rank] = free.getsockname()[1]
    started = {
        rank: subprocess.Popen(
            [sys.executable, "-c", WAITING, str(rank)],
            cwd=ROOT,
            env=os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank, port in waiting.items()
    }
    said = {rank: process.communicate(timeout=90)[0].splitlines() for rank, process in started.items()}
    for rank, whom in ((0, "the other 2 of 3 processes"), (2, "rank 0")):
        where = f"{whom} at 127.0.0.1:{waiting[rank]}"
        lines = [
            line for line in said[rank] if line.startswith(f"regrow: rank {rank} has been waiting for {where} for ")
        ]
        assert len(lines) >= 2 and "whether all 3 were started" in lines[0], said[rank]
        assert said[rank][-1].startswith(f"rank {rank} did not meet {where} ("), said[rank]


if __name__ == "__main__":
    one_process(Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4])
