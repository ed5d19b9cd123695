"""Boards in a run: what is missing is said once, before any work; what a resume does again stands once."""

from __future__ import annotations

import importlib.util
import json

import pytest

from pipeline.config import load_config
from pipeline.stages.boards import look_at_boards

BOTH = ("train.tensorboard=true", "train.wandb=trial")


def test_a_missing_package_is_named_with_the_way_to_it(tiny_config, monkeypatch):
    monkeypatch.setattr("pipeline.stages.boards.find_spec", lambda package: None)
    assert look_at_boards(load_config(tiny_config)) == [], "nothing was asked for"
    lines = look_at_boards(load_config(tiny_config, BOTH))
    assert [line.split(":")[0] for line in lines] == ["train.tensorboard", "train.wandb"]
    assert "(pip install 'regrow[wandb]'); training goes on without it" in lines[1]


@pytest.mark.slow
def test_training_without_the_packages_is_the_same(regrow, lengthen, copy_until, same_as_reference, tmp_path):
    if any(importlib.util.find_spec(package) for package in ("tensorboard", "wandb")):
        pytest.skip("tensorboard or wandb is installed: test.sh -m slow in a .venv as setup.sh makes it")
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    command = regrow("train", config, *BOTH)
    assert command.wait() == 0, command.output
    assert command.output.count("is not installed") == 2, command.output
    same_as_reference(run)


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_a_kill(regrow, lengthen, copy_until, same_as_reference, tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs tensorboard: pip install -e '.[tensorboard]', then test.sh -m slow",
    )
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    begun = regrow("train", config, BOTH[0])
    begun.read_until("[train] step 14 of 24")
    begun.kill()
    begun.wait()
    resumed = regrow("train", config, BOTH[0])
    assert resumed.wait() == 0, resumed.output
    shown = events.EventAccumulator(str(run / "train" / "tensorboard"))
    shown.Reload()
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [(event.step, round(event.value, 4)) for event in shown.Scalars("train/loss")] == [
        (line["step"], round(line["loss"], 4)) for line in lines
    ]
    assert [event.step for event in shown.Scalars("held_out/perplexity")] == [0, 8, 16, 24]
    same_as_reference(run)
    assert not [name for name in json.loads((run / "train" / "stage.json").read_text())["outputs"] if "events" in name]
