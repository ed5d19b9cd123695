"""The clusters, and a run that nothing disturbed, for the tests on them, which are skipped where a part is missing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.cluster.hosts import Hosts
from tests.cluster.slurm import NODES, Slurm
from tests.command import Regrow

#: Long enough to be met at a step: 40 steps of 8 rows.
LONG = """extends: tiny.yaml
train: {tokens: 20480, checkpoint_every: 15, evaluate_every: 20}
"""
STEPS = 40
COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")
#: A process of the package, wherever it is started.
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "DS_ACCELERATOR": "cpu",
}


def require(*commands: str) -> None:
    """Skip unless this is root's machine and has the commands."""
    missing = [name for name in commands if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if os.geteuid() or missing:
        pytest.skip(f"needs root and {', '.join(missing or commands)}: test.sh -m cluster on such a machine")


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts. n2 and n3 have a core each: their ranks have as many threads as two on one machine of two cores."""
    require("ip", "nsenter", "unshare", "taskset")
    with Hosts(tmp_path_factory.mktemp("hosts"), tuple(NODES), {"n2": 0, "n3": 1}) as made:
        yield made


@pytest.fixture(scope="session")
def slurm(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm on these hosts."""
    require("munged", "slurmctld", "slurmd", "sbatch", "srun")
    with Slurm(tmp_path_factory.mktemp("slurm"), hosts) as made:
        yield made


@pytest.fixture(scope="session")
def long_config(configure: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    configure(folder)
    (folder / "long.yaml").write_text(LONG)
    return folder / "long.yaml"


@pytest.fixture(scope="session")
def undisturbed(long_config: Path) -> Path:
    """The folder of a run of that config by two processes that nothing interrupted. Not to be changed."""
    command = Regrow("run", long_config, "--until", "train", "run.name=undisturbed")
    assert command.wait(900) == 0, command.output
    return long_config.parent / "runs" / "undisturbed"


@pytest.fixture
def pruned(undisturbed: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of a run that is done up to stage prune, to be trained; its name begins as the test's."""
    number = len(list(undisturbed.parent.iterdir()))
    run = undisturbed.with_name(f"{request.node.name.removeprefix('test_')[:40]}-{number}")
    for stage in ("data", "score", "prune"):
        shutil.copytree(undisturbed / stage, run / stage)
    shutil.copy(undisturbed / "hashes.json", run)
    return run


def lines(run: Path, name: str = "metrics.jsonl") -> list[list[object]]:
    """The columns of a run's metrics that must be alike, by step; none where it has not begun."""
    path = run / "train" / name
    found = [line for line in path.read_text().splitlines(keepends=True)] if path.exists() else []
    # The last one may be half written.
    return [[json.loads(line)[column] for column in COLUMNS] for line in found if line.endswith("\n")]


def wait_for_step(run: Path, step: int, seconds: float = 600) -> None:
    """Wait until a run has made a step."""
    end = time.monotonic() + seconds
    while not any(line[0] >= step for line in lines(run)):
        assert time.monotonic() < end, f"{run.name}: no step {step} within {seconds} s"
        time.sleep(0.05)


def newest(run: Path) -> int:
    """The step of a run's newest complete checkpoint; 0 without one."""
    kept = [path.parent.name for path in run.glob("train/checkpoints/step-*/COMPLETE")]
    return max((int(name.removeprefix("step-")) for name in kept), default=0)


def require_same_bytes(run: Path, other: Path) -> None:
    """AssertionError unless two runs ended in the same weights, by the same losses."""
    assert [line[0] for line in lines(run)] == list(range(1, STEPS + 1)), "metrics.jsonl does not hold each step once"
    assert lines(run) == lines(other), "losses, norms or rates are others"
    held_out = "train/held_out.jsonl"
    assert (run / held_out).read_text() == (other / held_out).read_text(), "held-out losses are others"
    exports = [
        {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in each.glob("train/exports/*/*.safetensors")
        }
        for each in (run, other)
    ]
    assert exports[0] and exports[0] == exports[1], "the export's bytes are others"
