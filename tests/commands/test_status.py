"""Status reads the folder alone: done, begun and untouched stages, and who works there."""

from __future__ import annotations

import json
import os
import socket

import pytest

from pipeline.commands.status import status_text
from pipeline.config import dump_config, load_config
from pipeline.errors import RegrowError
from pipeline.files import write_atomic, write_json
from pipeline.run import Run


@pytest.fixture
def run(tiny_config, tmp_path) -> Run:
    run = Run(tmp_path / "runs" / "tiny")
    write_atomic(run.folder / "config.yaml", dump_config(load_config(tiny_config)))
    run.finish("data", {"finished": "2026-11-22T04:00:00+0000", "seconds": 1.25})
    return run


def line(run: Run, stage: str) -> str:
    return next(line for line in status_text(run.folder).splitlines() if line.split()[:1] == [stage])


def test_every_stage_is_done_begun_or_not(run):
    write_json(run.stage("score") / "progress" / "started.json", {})
    for number in range(3):
        write_json(run.stage("score") / "progress" / f"batch-{number:05d}.json", {})
    assert line(run, "data").split() == ["data", "done", "2026-11-22T04:00:00+0000,", "1.2", "s"]
    assert line(run, "score").split() == ["score", "begun", "3", "micro-batches", "swept"]
    assert line(run, "prune").split() == ["prune", "not", "begun"]
    assert "no command works in it now" in status_text(run.folder)
    with run.lock():
        assert f"in use by host {socket.gethostname()} pid {os.getpid()}" in status_text(run.folder)


def test_a_sweep_block_by_block_is_told_in_blocks(run):
    progress = run.stage("score") / "progress"
    write_json(progress / "started.json", {})
    shelf = progress / "states-0-of-1"
    shelf.mkdir()
    assert "0 blocks swept" in line(run, "score")
    # The first micro-batch enters block 4, the second block 3; dense states of earlier blocks are kept.
    for name in ("000000-0003", "000000-0004", "000001-0002", "000001-0003"):
        (shelf / f"{name}.states").touch()
    assert "3 blocks swept" in line(run, "score")
    for path in shelf.glob("*.states"):
        path.unlink()
    for number in range(2):
        write_json(shelf / f"{number:06d}.json", {})
    assert "all blocks swept" in line(run, "score")


def test_training_s_place_speed_and_time_left(run):
    write_json(run.stage("train") / "progress" / "started.json", {})
    # 4,096 tokens are 8 steps of 8 rows of 64.
    assert line(run, "train").split() == ["train", "begun", "step", "0", "of", "8"]
    steps = [{"step": n, "loss": 5 - n / 10, "tokens_per_second": 1000.0 * n, "seconds": 900.0} for n in (1, 2, 3, 4)]
    metrics = run.stage("train") / "metrics.jsonl"
    # The last line is being written at this moment.
    write_atomic(metrics, "".join(json.dumps(step) + "\n" for step in steps) + '{"step": 5, "lo')
    assert "step 4 of 8, loss 4.6000, 2,500 tokens/s, 1.00 h left, newest checkpoint none" in line(run, "train")
    for name, complete in (("step-00000002", True), ("step-00000003", True), ("step-00000004", False)):
        folder = run.stage("train") / "checkpoints" / name
        folder.mkdir(parents=True)
        if complete:
            (folder / "COMPLETE").touch()
    assert "newest checkpoint step-00000003" in line(run, "train"), "a torn checkpoint was counted"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RegrowError, match=r"not a run's folder \(no config\.yaml in it\)"):
        status_text(tmp_path)
    with pytest.raises(RegrowError, match=r"not a run's folder"):
        status_text(tmp_path / ("n" * 300))


def test_a_damaged_line_is_named_and_a_torn_last_one_is_left_out(run):
    metrics = run.stage("train") / "metrics.jsonl"
    write_json(run.stage("train") / "progress" / "started.json", {})
    whole = '{"step": 1, "loss": 2.5, "tokens_per_second": 100.0, "seconds": 1.0}\n'
    metrics.write_text(whole + '{"step": 2, "lo')
    assert "step 1 of 8" in line(run, "train")
    metrics.write_text(whole + '{"step": 2, "lo\n' + whole)
    with pytest.raises(RegrowError, match=r"metrics\.jsonl:2: damaged line"):
        status_text(run.folder)
