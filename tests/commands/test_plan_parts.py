"""All parts of the demo, planned for the machine that it was measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.plan_parts import parts_of_run
from pipeline.commands.plan_time import Chip, Shape
from pipeline.config import load_config
from pipeline.model.describe import describe_folder
from tests import ROOT
from tests.commands.test_plan_time import SMOLLM2

RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()
DEMO = ROOT / "configs" / "demo.yaml"


def test_the_demo_takes_the_time_that_was_measured(demo: Path):
    """170 s in all, some 20 of them for the sums, on two cores that trained 0.2942 steps of 2,048 tokens a second and
    wrote 35.1 tokens a second with the dense model. Two processes have half of the products each."""
    assert "| 170 |" in RESULTS and "(some 20 s)" in RESULTS and "0.2942 steps/s" in RESULTS
    config, model = load_config(DEMO), describe_folder(demo / "model")
    assert Shape.of(model, 2) == SMOLLM2
    removed = [3_540_096] * 9
    training = config.steps * 2048 * 3 * Shape.of(model, 2, removed).forward(256)
    parts, missing = parts_of_run(config, model, removed, None, training, 2)
    chip = Chip(0.2942 * training / config.steps / 2, 35.1 * SMOLLM2.weights)
    seconds = {part.what: part.seconds(chip) for part in parts}
    assert not missing
    assert [part.stage for part in parts] == ["score", "prune", "train", "train", *["evaluate"] * 4]
    assert sum(seconds.values()) == pytest.approx(170, rel=0.25), seconds
    assert seconds["3 models: 200 items of sums"] == pytest.approx(20, rel=0.4), seconds


def test_what_is_done_before_training_is_a_part_of_it(demo: Path):
    model = describe_folder(demo / "model")
    asked = ["train.heal=local", "train.objective=distill", "train.distill={samples: 50, store: answers}"]
    parts, _ = parts_of_run(load_config(DEMO, asked), model, [3_540_096] * 9, demo / "model", 1e12, 2)
    words = {part.what: part.flops for part in parts}
    assert words["the teacher's answers to 32,768 tokens"] == pytest.approx(32768 * SMOLLM2.forward(256), rel=1e-3)
    assert words["healing on 65,536 tokens"] > 65536 * SMOLLM2.forward(128)


def test_a_stage_s_own_number_of_processes_counts_and_auto_is_training_s(demo: Path):
    model = describe_folder(demo / "model")
    parts, _ = parts_of_run(load_config(DEMO, ["score.processes=1", "prune.processes=auto"]), model, [], None, 1e12, 8)
    assert [part.processes for part in parts if part.stage in ("score", "prune", "train")] == [1, 8, 8, 8]
