"""launch/requeue.sh: where a run stands, how long a save took, and when a job is not started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import write_json
from tests import ROOT


def bash(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run lines of bash behind ``source launch/requeue.sh``; the arguments are theirs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source launch/requeue.sh; {script}", "_", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with a checkpoint, whose files were written within 7 seconds."""
    for name in ("data", "score", "prune"):
        write_json(tmp_path / name / "stage.json", {})
    checkpoint(tmp_path, 100)
    return tmp_path


def checkpoint(run: Path, step: int) -> None:
    folder = run / "train" / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    for number, name in enumerate(("weights", "state.json", "COMPLETE")):
        (folder / name).touch()
        os.utime(folder / name, (1000, 1000 + 3.5 * number))


def test_the_run_is_found_by_its_config_and_shards_go_to_the_node_unless_a_place_is_stated(tmp_path):
    script = 'find_run "$@"; echo "$run" ${here[@]+"${here[@]}"}'
    words = ("--until", "train", "configs/vicuna-7b/2.7b.yaml", f"run.folder={tmp_path}", "--redo", "data")
    found = bash(script, *words, SLURM_TMPDIR="/scratch/7")
    assert found.stdout.split()[0] == f"{tmp_path}/vicuna-2.7b", found.stderr
    assert found.stdout.split()[1].startswith("data.cache=/scratch/7/regrow-")
    assert bash(script, *words, "data.cache=/elsewhere").stdout.split() == [f"{tmp_path}/vicuna-2.7b"]
    refused = bash(script, "configs/vicuna-7b/2.7b.yaml", "prune.remov=3")
    assert refused.returncode == 1 and "unknown key" in refused.stderr and "Traceback" not in refused.stderr


def test_a_save_s_time_is_training_s_own_or_its_files(run):
    assert bash("run=$1; save_seconds", run).stdout == "7\n"
    write_json(run / "train" / "REQUEUE", {"why": "SIGUSR1 on rank 0", "step": 100, "save_seconds": 412.7})
    assert bash("run=$1; save_seconds", run).stdout == "412\n"
    write_json(run / "train" / "REQUEUE", {"why": "SIGUSR1 on rank 0", "step": 100, "save_seconds": None})
    assert bash("run=$1; save_seconds", run).stdout == "7\n"
    assert bash("run=$1; save_seconds", run / "none").stdout == "0\n"


def test_progress_is_a_stage_a_checkpoint_or_a_stage_s_own(run):
    seen = [bash("run=$1; progress", run).stdout]
    assert seen[0] == "3 stages done, newest checkpoint step-00000100, 0 bytes of progress\n"
    (run / "train" / "metrics.jsonl").write_text("{}")
    assert bash("run=$1; progress", run).stdout == seen[0], "steps that will be done again are none"
    checkpoint(run, 200)
    seen.append(bash("run=$1; progress", run).stdout)
    (run / "score" / "progress").mkdir()
    (run / "score" / "progress" / "sequences").write_text("1")
    seen.append(bash("run=$1; progress", run).stdout)
    write_json(run / "train" / "stage.json", {})
    seen.append(bash("run=$1; progress", run).stdout)
    assert len(set(seen)) == 4, seen
    assert bash("run=$1; progress", run / "none").stdout.startswith("0 stages done, newest checkpoint none, 0")


def test_the_second_start_in_a_row_without_progress_is_the_last(run):
    start = 'run=$1; before=$(progress); {}; may_requeue "$before"'
    idle, busy = start.format(":"), start.format('mkdir -p "$run/$2/progress"; echo > "$run/$2/progress/x"')
    assert bash(idle, run).returncode == 0
    assert bash(busy, run, "score").returncode == 0, "it got on"
    assert bash(idle, run).returncode == 0, "the count goes on where it was, though the run got on"
    last = bash(idle, run)
    assert last.returncode == 1 and "not started again: 2 starts in a row got no further" in last.stderr, last.stderr
    assert bash(idle, run).returncode == 0, "submitted again, it begins to count anew"
