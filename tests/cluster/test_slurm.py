"""launch/slurm.sbatch under a real Slurm: told before its time is over, preempted, on a node that is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.cluster.conftest import ENVIRONMENT, newest, require_same_bytes, wait_for_step
from tests.cluster.slurm import NODE_LOST, Slurm

pytestmark = pytest.mark.cluster
#: Two ranks each way.
ONE_NODE, TWO_NODES = ("--nodelist=n1", "--gpus-per-node=2"), ("--nodes=2", "--nodelist=n2,n3", "--gpus-per-node=1")


@pytest.fixture
def submit(slurm: Slurm, long_config: Path, pruned: Path, tmp_path: Path) -> Iterator:
    """``submit(*options, words=..., folder=...)``: the number of a job that trains ``pruned``, submitted from a folder;
    it is gone after the test."""
    numbers = []

    def start(*options: str, words: tuple[str, ...] = (), folder: Path = ROOT) -> str:
        script = [ROOT / "launch" / "slurm.sbatch", long_config, "--until", "train", f"run.name={pruned.name}", *words]
        log = f"--output={tmp_path}/log"
        small = ("--cpus-per-task=2", "--mem=1000", log)
        numbers.append(slurm.submit(folder, *small, *options, *script, environment=ENVIRONMENT))
        return numbers[-1]

    yield start
    for number in numbers:
        slurm.tell("scancel", number)
        slurm.wait_for(lambda number=number: slurm.job(number)["JobState"] not in ("RUNNING", "COMPLETING"), "end", 90)
    slurm.wait_for(lambda: set(slurm.tell("sinfo", "-h", "-o", "%T").split()) == {"idle"}, "idle nodes", 180)


def requeued(slurm: Slurm, number: str, times: int, seconds: float = 90) -> None:
    slurm.wait_for(lambda: int(slurm.job(number)["Restarts"]) >= times, f"requeued {times} times", seconds)


def test_a_job_that_is_told_saves_requeues_itself_and_ends_in_the_same_bytes(
    slurm, submit, pruned, undisturbed, tmp_path
):
    number = submit(*ONE_NODE)
    wait_for_step(pruned, 17)
    slurm.tell("scancel", "--signal=USR1", "--batch", number)
    requeued(slurm, number, 1)
    assert newest(pruned) not in (0, 15, 30), f"no checkpoint at the signal:\n{(tmp_path / 'log').read_text()}"
    assert json.loads((pruned / "train" / "REQUEUE").read_text())["step"] == newest(pruned)
    slurm.wait_until(number, "COMPLETED", 900)
    log = (tmp_path / "log").read_text()
    assert f"resuming at step {newest_before(log)}" in log
    require_same_bytes(pruned, undisturbed)
    assert not (pruned / "requeued").exists() and not (pruned / "train" / "REQUEUE").exists()


def newest_before(log: str) -> int:
    """The step at which a log's first start stopped."""
    return int(log.split("stopped at step ")[1].split()[0])


def test_slurm_itself_tells_a_job_before_its_limit(slurm, submit, pruned, tmp_path):
    """It counts in minutes, and may be a minute early."""
    number = submit(*ONE_NODE, "--time=6", "--signal=B:USR1@60", words=("train.tokens=4e6",))
    requeued(slurm, number, 1, 500)
    log = (tmp_path / "log").read_text()
    assert "DUE TO TIME LIMIT" not in log and "over time" not in log, log
    assert (pruned / "requeued").read_text().startswith("0 starts"), "it got on"


def test_a_preempted_job_ends_in_the_same_bytes(slurm, submit, pruned, undisturbed):
    number = submit(*ONE_NODE)
    wait_for_step(pruned, 17)
    slurm.tell("scontrol", "requeue", number)
    requeued(slurm, number, 1)
    slurm.wait_until(number, "COMPLETED", 900)
    require_same_bytes(pruned, undisturbed)


def test_a_cancelled_job_stays_so(slurm, submit, pruned):
    number = submit(*ONE_NODE)
    wait_for_step(pruned, 5)
    slurm.tell("scancel", number)
    slurm.wait_for(lambda: slurm.job(number)["JobState"] == "CANCELLED", "cancelled", 90)
    slurm.wait_for(lambda: not slurm.hosts.ranks("n1"), "no ranks", 90)
    assert slurm.job(number)["Restarts"] == "0"


def test_a_job_that_loses_a_node_is_requeued_and_ends_in_the_same_bytes(slurm, submit, pruned, undisturbed):
    number = submit(*TWO_NODES)
    wait_for_step(pruned, 17)
    slurm.hosts.cut("n3")
    try:
        requeued(slurm, number, 1, NODE_LOST + 90)
    finally:
        slurm.hosts.join("n3")
    slurm.wait_until(number, "COMPLETED", 900)
    require_same_bytes(pruned, undisturbed)


def test_a_job_that_gets_nowhere_is_requeued_once(slurm, submit, pruned, tmp_path):
    """It is told before its first step, twice."""
    number = submit(*ONE_NODE)
    for start in (0, 1):
        slurm.wait_until(number, "RUNNING", 200)
        slurm.wait_for(lambda: slurm.hosts.ranks("n1"), "ranks", 300)
        slurm.tell("scancel", "--signal=USR1", "--batch", number)
        if start == 0:
            requeued(slurm, number, 1)
    slurm.wait_for(lambda: slurm.job(number)["JobState"] == "FAILED", "failed", 90)
    assert "not started again: 2 starts in a row got no further than 3 stages done" in (tmp_path / "log").read_text()
    assert slurm.job(number)["Restarts"] == "1"


def test_a_save_that_is_killed_is_said_and_the_job_goes_on(slurm, submit, tmp_path):
    """A program in torchrun's place that hears no signal stands for a save that takes too long. Limits are in minutes,
    and Slurm looks at them every half."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "torchrun").write_text("#!/bin/bash\ntrap '' USR1 TERM\nwhile :; do sleep 1; done\n")
    (tmp_path / "bin" / "torchrun").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{ENVIRONMENT['PATH']}"
    # Where it is submitted may stand a .venv, whose torchrun the script would take.
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    number = submit(*ONE_NODE, "--time=1", f"--export=ALL,PATH={path}", folder=tmp_path)
    requeued(slurm, number, 1, 300)
    assert "it had not saved, 300 s after the job was told: LEAD=600" in (tmp_path / "log").read_text()
