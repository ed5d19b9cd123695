"""Tasks between the steps of training: by the processes that train, without a trace in what is trained."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.stages.during import require_during

ASKED = ["evaluate.during.every=12", "evaluate.during.tasks=[sums]", "evaluate.during.limit=8"]


def lines(run, name):
    return [json.loads(line) for line in (run / "train" / name).read_text().splitlines()]


@pytest.mark.slow
def test_tasks_are_asked_before_training_and_at_their_steps_and_change_no_bit(reference, lengthen, regrow, tmp_path):
    """The reference run was trained without: the same losses, norms and export."""
    config = lengthen(tmp_path)
    run = tmp_path / "runs" / "tiny"
    for stage in ("data", "score", "prune"):
        shutil.copytree(reference / stage, run / stage)
    shutil.copy(reference / "hashes.json", run)
    command = regrow("train", config, *ASKED, "train.processes=2")
    assert command.wait() == 0, command.output
    asked = lines(run, "tasks.jsonl")
    assert [line["step"] for line in asked] == [0, 12, 24] and [line["tokens"] for line in asked] == [0, 6144, 12288]
    for line in asked:
        entry = line["tasks"]["sums"]
        assert entry["items"] == 8 and 0 <= entry["value"] <= 1 and entry["metric"] == "exact_match, first number"
    for name in ("loss", "grad_norm"):
        ours, theirs = ([line[name] for line in lines(folder, "metrics.jsonl")] for folder in (run, reference))
        assert ours == theirs, f"{name} is another with tasks between the steps"
    export = "train/exports/step-00000024/model.safetensors"
    assert (run / export).read_bytes() == (reference / export).read_bytes()
    assert "step 12: sums 0." in command.output and (run / "train/tasks/sums.yaml").exists()


@pytest.mark.slow
def test_under_zero_3_they_are_refused_with_the_way_out(tiny_config):
    with pytest.raises(RegrowError, match=r"whole.*train\.export_every .*--export all.*ZeRO 1 or 2"):
        require_during(load_config(tiny_config, [*ASKED, "train.zero_stage=3"]))
    require_during(load_config(tiny_config, ["train.zero_stage=3"]))
    with pytest.raises(RegrowError, match="no task 'sumz'"):
        require_during(load_config(tiny_config, [*ASKED, "evaluate.during.tasks=[sumz]"]))


def test_when_they_are_asked_may_change_on_a_resume(tiny_config):
    assert load_config(tiny_config, ASKED).read_by("train") == load_config(tiny_config).read_by("train")
