"""Places that launchers describe, and processes that end with their parents; all with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.errors import RegrowError
from pipeline.launch import (
    AGENT,
    TOLD,
    Place,
    PlaceError,
    choose_gpu,
    count_processes,
    find_place,
    require_own_gpus,
)
from tests import ROOT


def wait_for(what, seconds: float = 30, step: float = 0.02):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(step)
    return None


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, r"holds no number: .*'x'"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, r"rank 3 \(RANK\) of 2 processes"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, r"holds no number: .*'two'"),
    ],
)
def test_a_place_that_cannot_be_is_refused(stated, message):
    with pytest.raises(RegrowError, match=message):
        find_place(stated)


def test_places_of_every_launcher():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
    assert find_place(torchrun) == Place(5, 8, 1, 4, "other")
    assert find_place({**torchrun, AGENT: "77"}) == Place(5, 8, 1, 4, "regrow")
    deepspeed = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "CROSS_RANK": "1"}
    assert find_place(deepspeed) == Place(5, 8, 1, 4, "other")
    srun = {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS_PER_NODE": "4",
    }
    assert find_place(srun) == Place(5, 8, 1, 4, "other")
    alone = Place(0, 1, 0, 1, None)
    assert find_place({}) == alone, "a process on its own"
    one = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    assert find_place(one) == alone, "one task of srun"
    batch = {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert find_place(batch) == alone, "a batch script without srun"


@pytest.mark.parametrize(
    ("listed", "node", "here"),
    [("4(x2)", 1, 4), ("1(x2)", 0, 1), ("8", 0, 8), ("5,3", 0, 5), ("5,3", 1, 3), ("4(x3),2", 2, 4), ("4(x3),2", 3, 2)],
)
def test_tasks_of_a_node_are_read_from_slurm_s_list(listed, node, here):
    """`srun -N2 -n8` sets no count for each node, only this list; the job's own list may be longer."""
    srun = {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": str(node),
        "SLURM_STEP_TASKS_PER_NODE": listed,
        "SLURM_TASKS_PER_NODE": "16(x9)",
    }
    assert find_place(srun) == Place(3, 8, 1, here, "other")


def test_a_process_takes_the_gpu_of_its_place_or_the_only_one_that_it_was_given():
    """srun --gpus-per-task shows each task one GPU; two processes that were started on one GPU see one as well."""
    third = Place(7, 8, 3, 4, "other")
    assert choose_gpu(third, 4, None) == choose_gpu(third, 8, "0,1,2,3,4,5,6,7") == 3
    for listed in ("0", "3", "GPU-5a7c", "MIG-1"):
        assert choose_gpu(third, 1, listed) == 0, listed
    for gpus, listed in ((1, None), (1, ""), (1, "0,1"), (2, "0,1"), (2, None)):
        with pytest.raises(RegrowError, match=rf"rank 7 has no GPU: it sees {gpus}, and 4 processes") as caught:
            choose_gpu(third, gpus, listed)
        assert not isinstance(caught.value, PlaceError), (
            "the first process of the machine has one, and would not say it"
        )


def test_two_processes_on_one_gpu_are_refused():
    own = [("a", "uuid-1"), ("a", "uuid-2"), ("b", "uuid-1"), None, None]
    require_own_gpus(own)
    with pytest.raises(PlaceError, match=r"ranks 1 and 5 took the same GPU of a \(uuid-2\)"):
        require_own_gpus([*own, ("a", "uuid-2")])


def test_processes_are_as_asked():
    import torch

    assert [count_processes(asked) for asked in (3, "2")] == [3, 2]
    assert count_processes("auto") == max(1, torch.cuda.device_count())


CHILD = """
import os, sys, time
from pipeline.launch import die_with_parent
die_with_parent(int(sys.argv[1]) if len(sys.argv) > 1 else None)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def start(code: str, *arguments: object, **more) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE, **more
    )


def test_a_process_in_a_session_of_its_own_ends_with_its_killed_parent():
    parent = start(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)",
        CHILD,
    )
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    assert wait_for(lambda: gone(child), 5), "the child outlived a kill -9 of its parent"
    parent.communicate()


def test_a_process_whose_parent_was_gone_before_it_asked_ends_at_once():
    late = start(CHILD, 1 if os.getpid() != 1 else 2)
    out, _ = late.communicate(timeout=30)
    assert (late.returncode, out) == (1, ""), "it went on though its parent is another"


def srun(*arguments: str, **environment: str) -> list[subprocess.Popen]:
    """Three tasks of one node as srun starts them."""
    job = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "3", **environment}
    command = [sys.executable, "-m", "pipeline", *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER"))}
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**kept, **job, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
        )
        for task in range(3)
    ]


def test_what_all_tasks_of_srun_meet_is_said_once(tiny_config):
    """Nobody ends the others there: a mistyped key, and processes that were not told where to meet."""
    address = {"MASTER_ADDR": "127.0.0.1"}
    jobs = {
        "unknown key 'train.seeed'": srun("run", str(tiny_config), "train.seeed=1", **address, MASTER_PORT="1"),
        "MASTER_ADDR and MASTER_PORT: not set; set MASTER_ADDR": srun("run", str(tiny_config)),
        "regrow: MASTER_PORT: not set; set MASTER_ADDR and": srun("run", str(tiny_config), **address),
        "MASTER_PORT is 'auto'; it must be": srun("run", str(tiny_config), **address, MASTER_PORT="auto"),
    }
    for what, tasks in jobs.items():
        said = [task.communicate(timeout=60)[0] for task in tasks]
        assert what in said[0] and said[0].count("\n") == 1 and said[1:] == ["", ""], said
        assert [task.returncode for task in tasks] == [1, TOLD, TOLD]


def test_a_refusal_under_somebody_else_s_torchrun_is_told_once_and_ends_its_report(tiny_config, tmp_path):
    """Without the file where torchrun looks for a reason its report would say nothing of it."""
    words = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m", "pipeline"]
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, "score", str(tiny_config), "model.path=/nowhere"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=120,
    )
    reason = "model.path '/nowhere': no such folder"
    told = [line.strip() for line in process.stderr.splitlines() if reason in line]
    assert process.returncode == 1 and len(told) == 2, process.stderr
    assert told[0].startswith(f"regrow: {reason}") and told[1].startswith(f"traceback : {reason}"), told
    assert f"{ROOT / 'pipeline'}/" not in process.stderr, f"a rank's traceback was printed:\n{process.stderr}"
