"""Where a training stands, and how its starts ended, as its folder tells it at any moment."""

from __future__ import annotations

import json
import os
import time

import pytest

from pipeline.commands.status import look_at
from pipeline.errors import RegrowError
from pipeline.files import write_atomic, write_json
from pipeline.stages.history import note_failure, note_start

STEP = {"tokens": 4096, "loss": 4.6, "tokens_per_second": 1000.0, "seconds": 900.0, "mfu": None}


@pytest.fixture
def train(run):
    """The folder of a training that has begun."""
    write_json(run.stage("train") / "progress" / "started.json", {})
    return run.stage("train")


def write_lines(path, *lines, torn="") -> None:
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines) + torn)


def told(run) -> str:
    return look_at(run.folder).text


def test_place_loss_speed_and_time_left(run, train):
    # 4,096 tokens are 8 steps of 8 rows of 64.
    assert "train     begun     step 0 of 8\n" in told(run)
    steps = [{**STEP, "step": n, "loss": 5 - n / 10, "tokens_per_second": 1000.0 * n} for n in (1, 2, 3, 4)]
    # The last line is being written at this moment.
    write_lines(train / "metrics.jsonl", *steps, torn='{"step": 5, "lo')
    assert "step 4 of 8, loss 4.6000, 4,096 tokens, 2,500 tokens/s, 1:00:00 left\n" in told(run)
    write_lines(train / "metrics.jsonl", *steps, {**STEP, "step": 5, "mfu": 0.5}, {**STEP, "step": 6, "mfu": 0.4})
    assert "tokens/s, MFU 45.0 %, 0:30:00 left" in told(run)
    write_lines(train / "metrics.jsonl", {**STEP, "step": 1, "loss": None, "skipped": True})
    assert "step 1 of 8, skipped, " in told(run)
    write_lines(train / "metrics.jsonl", {**STEP, "step": 1, "loss": None})
    assert "step 1 of 8, loss not finite, " in told(run)


def test_the_newest_checkpoint_that_is_whole_with_its_age(run, train):
    assert "no checkpoint yet" in told(run)
    for name, complete in (("step-00000002", True), ("step-00000003", True), ("step-00000004", False)):
        folder = train / "checkpoints" / name
        folder.mkdir(parents=True)
        if complete:
            (folder / "COMPLETE").touch()
            os.utime(folder / "COMPLETE", (time.time() - 600, time.time() - 600))
    assert "newest checkpoint step-00000003, 10 min ago" in told(run), "a torn checkpoint was counted"


def test_the_last_held_out_perplexity_has_its_interval(run, train):
    judged = {"tokens": 0, "held_out_perplexity": 40.0, "held_out_stderr": 2.0, "rows": 4}
    write_lines(train / "held_out.jsonl", {**judged, "step": 0}, {**judged, "step": 4, "held_out_perplexity": 30.0})
    assert "held-out perplexity 30.00 (95 %: 24." in told(run) and "at step 4" in told(run)


def test_starts_errors_skipped_steps_and_endings(run, train):
    assert "started" not in told(run), "an earlier release's run has no history"
    note_start("train", run)
    assert "started once, at " in told(run)
    note_failure("train", run, 1, "ran out of GPU memory\nTraceback")
    note_start("train", run)
    lines = [line.strip() for line in told(run).splitlines()]
    assert any(line.startswith("started 2 times, the last time at ") for line in lines)
    assert any(line.startswith("last error ") and line.endswith(": rank 1: ran out of GPU memory") for line in lines)
    write_lines(train / "bad_steps.jsonl", {"step": 3, "reason": "its loss is nan", "rows": []})
    assert "1 step skipped, the last one step 3, for its loss is nan" in told(run)
    (train / "STOP").write_text("maintenance")
    write_json(train / "REQUEUE", {"why": "SIGTERM on rank 0", "step": 4, "date": "2026-11-27", "save_seconds": 1})
    assert "stopped by SIGTERM on rank 0 at step 4, 2026-11-27; wants another start" in told(run)
    assert f"asked to stop by {train / 'STOP'}" in told(run)
    (train / "REQUEUE").unlink()
    write_json(train / "DONE", {"date": "2026-11-28"})
    assert "training is done, 2026-11-28" in told(run)


def test_half_of_any_file_is_passed_over(run, train):
    """Cut at any place, as a kill, a full disk or this very moment leaves it."""
    note_start("train", run)
    note_failure("train", run, 0, "mist\u00e4ke")
    write_lines(train / "metrics.jsonl", {**STEP, "step": 1}, {**STEP, "step": 2})
    write_lines(train / "held_out.jsonl", {"step": 0, "held_out_perplexity": 3.0, "held_out_stderr": 0.1, "rows": 4})
    write_lines(train / "bad_steps.jsonl", {"step": 1, "reason": "x", "rows": []})
    write_json(train / "REQUEUE", {"why": "STOP", "step": 4})
    for path in [*train.glob("*.jsonl"), train / "REQUEUE"]:
        whole = path.read_bytes()
        for end in range(0, len(whole), len(whole) // 5):
            path.write_bytes(whole[:end])
            assert "train     begun     step " in told(run), f"{path.name} cut at {end}"
        path.write_bytes(whole)


def test_a_damaged_line_is_named(run, train):
    line = json.dumps({**STEP, "step": 1}) + "\n"
    (train / "metrics.jsonl").write_text(line + '{"step": 2, "lo\n' + line)
    with pytest.raises(RegrowError, match=r"metrics\.jsonl:2: damaged line"):
        told(run)


def test_of_many_steps_the_last_are_read_alone(run, train):
    """A run has hundreds of thousands; the damage is far from the end."""
    lines = "".join(json.dumps({**STEP, "step": step}) + "\n" for step in range(1, 1001))
    (train / "metrics.jsonl").write_text('{"step": 0, "lo\n' + lines + '{"step": 1001, "lo')
    assert "step 1000 of 8" in told(run)
