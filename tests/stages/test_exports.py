"""Judging exports as the command does it: beside a training that goes on, on several processes, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import hash_file, read_json
from tests import ROOT
from tests.stages.conftest import STEPS

ASKED = ["evaluate.tasks.names=[sums]", "evaluate.tasks.limit=4"]
LAST = f"step-{STEPS:08d}"


def curve(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "evaluate" / "curve.jsonl").read_text().splitlines()]


def held_out(run: Path) -> dict[int, float]:
    lines = (json.loads(line) for line in (run / "train" / "held_out.jsonl").read_text().splitlines())
    return {line["step"]: line["held_out_perplexity"] for line in lines}


@pytest.mark.slow
def test_under_zero_3_on_two_processes_exports_are_judged_while_training_goes_on(
    copy_until, lengthen, regrow, tmp_path
):
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    asked = ["train.zero_stage=3", "train.export_every=8", *ASKED]
    training = regrow("train", config, *asked)
    training.read_until("[train] step 9 of 24")
    # The command stands still with its lock, however fast its processes train.
    os.killpg(training.process.pid, signal.SIGSTOP)
    try:
        before = {name: (run / name).read_bytes() for name in ("config.yaml", "hashes.json", ".lock")}
        job = regrow("evaluate", config, *asked, "--export", "step-00000008")
        assert job.wait() == 0, job.output
        assert "[evaluate] step-00000008: judged in" in job.output
        assert before == {name: (run / name).read_bytes() for name in before}, "the run that is held was touched"
        assert not (run / "evaluate" / "progress").exists(), "the stage counts as begun"
    finally:
        os.killpg(training.process.pid, signal.SIGCONT)
    assert training.wait() == 0, training.output
    job = regrow("evaluate", config, *asked, "evaluate.processes=1", "--export", "all")
    assert job.wait() == 0, job.output
    assert "step-00000008: judged before by the same protocol, skipped" in job.output
    lines = curve(run)
    assert [(line["step"], line["tokens"], line["processes"]) for line in lines] == [
        (8, 4096, 2),
        (16, 8192, 1),
        (24, 12288, 1),
    ]
    in_training = held_out(run)
    for line in lines:
        found = line["perplexity"]
        # ZeRO 3 gathers the same bf16 weights for its own evaluation.
        assert found["held_out in training"]["value"] == pytest.approx(in_training[line["step"]], rel=1e-3)
        assert (found["held_out in training"]["rows"], found["held_out"]["rows"]) == (4, 8)
        assert line["tasks"]["sums"]["items"] == 4 and line["tasks"]["sums"]["stderr"] is not None
        assert line["export"] == f"train/exports/step-{line['step']:08d}"


@pytest.mark.slow
def test_under_torchrun_the_line_is_the_same(copy_until, lengthen, regrow, tmp_path):
    config = lengthen(tmp_path)
    launched, own = (copy_until("train", tmp_path, name) for name in ("launched", "own"))
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "pipeline", "evaluate", str(config)]
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:], "run.name=launched", "--export", "all"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    job = regrow("evaluate", config, "run.name=own", "--export", LAST)
    assert job.wait() == 0, job.output
    ((line,), (other,)) = curve(launched), curve(own)
    for name in ("perplexity", "protocol", "sha256", "step", "tokens", "processes"):
        assert line[name] == other[name], name


@pytest.fixture
def trained(copy_until, lengthen, tmp_path) -> tuple[Path, Path]:
    """A config and its run, done up to training."""
    return lengthen(tmp_path), copy_until("train", tmp_path)


def test_what_cannot_be_judged_is_refused_before_anything_is_computed(trained, refused):
    config, run = trained
    message = refused("evaluate", config, "--export", "step-00000007")
    assert f"no export step-00000007 in {run}/train/exports; there are: {LAST}" in message
    message = refused("evaluate", config, "train.learning_rate=2e-3", "--export", LAST)
    assert "of a training with another config:\n  train.learning_rate: was 0.001, is 0.002" in message
    assert "an export is judged outside of all" in refused("evaluate", config, "--export", LAST, "--redo", "evaluate")
    (run / "train" / "exports").rename(run / "exports")
    assert "none; train.export_every has training write some" in refused("evaluate", config, "--export", "all")
    assert not (run / "evaluate").exists()


@pytest.mark.slow
def test_another_protocol_has_a_line_of_its_own_and_the_stage_leaves_all_lines_alone(
    copy_until, lengthen, regrow, tmp_path
):
    config, run = lengthen(tmp_path), copy_until("evaluate", tmp_path)
    record = hash_file(run / "evaluate" / "stage.json")
    for overrides, said in (((), "judged in"), (("evaluate.perplexity.held_out.rows=6",), "by another protocol; this")):
        job = regrow("evaluate", config, "evaluate.processes=1", *overrides, "--export", "all")
        assert job.wait() == 0 and f"{LAST}: " in job.output and said in job.output, job.output
    lines = curve(run)
    assert [line["perplexity"]["held_out"]["rows"] for line in lines] == [8, 6]
    assert len({line["protocol"] for line in lines}) == 2 and lines[0]["sha256"] == lines[1]["sha256"]
    assert hash_file(run / "evaluate" / "stage.json") == record
    again = regrow("evaluate", config, "evaluate.processes=1")
    assert again.wait() == 0 and "done before, skipped" in again.output, "lines of exports made the stage stale"
    again = regrow("evaluate", config, "evaluate.processes=1", "--redo", "evaluate")
    assert again.wait() == 0, again.output
    assert curve(run) == lines, "the lines went aside with the stage"
    assert not [name for name in read_json(run / "evaluate" / "stage.json")["outputs"] if name.startswith("curve")]
    report = regrow("report", config)
    assert report.wait() == 0, report.output
    assert "With the exports of 1 step, judged by themselves" in (run / "report" / "index.html").read_text()
