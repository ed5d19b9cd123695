"""Time from FLOPs and from the number of forwards, against arithmetic on paper and a measured speed of generation."""

from __future__ import annotations

import pytest

from pipeline.commands.plan_time import Chip, Forwards, Part, Shape, timed
from pipeline.model.costs import model_flops_per_token
from tests.families import build

#: SmolLM2-135M: 30 blocks of 3,540,096 parameters, and a head of 49,152 x 576 with the last norm.
SMOLLM2 = Shape(30, 30 * 3_540_096, 49_152 * 576 + 576, 576, 2)


def test_a_shape_counts_a_third_of_training_s_flops():
    model = build("llama")
    shape = Shape.of(model, 2)
    assert shape.forward(128) == pytest.approx(model_flops_per_token(model, 128) / 3, rel=1e-3)
    assert shape.forward(256) > shape.forward(128)
    block = shape.inside // shape.blocks
    cut = Shape.of(model, 2, [block])
    assert (cut.blocks, cut.inside, cut.outside) == (shape.blocks - 1, shape.inside - block, shape.outside)


def test_a_forward_waits_for_what_takes_longest():
    weights = 2 * (SMOLLM2.inside + SMOLLM2.outside)
    slow_memory, slow_launches = Chip(1e15, 1e9), Chip(1e15, 1e15, 1e-3)
    assert Forwards(SMOLLM2, 7).seconds(slow_memory) == pytest.approx(7 * weights / 1e9)
    assert Forwards(SMOLLM2, 7).seconds(slow_launches) == pytest.approx(7 * 30 * 1e-3)
    many = Forwards(SMOLLM2, 7, tokens=4096, length=256)
    assert many.seconds(Chip(1e9, 1e15)) == pytest.approx(7 * 4096 * SMOLLM2.forward(256) / 1e9)


def test_generation_is_bound_by_the_weights_as_the_readme_s_table_measured_it():
    """35.1 tokens/s by the dense model, and 46.4 by the pruned one on the same two cores."""
    pruned = Shape(21, 21 * 3_540_096, SMOLLM2.outside, 576, 2)
    chip = Chip(1e15, bandwidth=35.1 * SMOLLM2.weights)
    assert 1 / Forwards(pruned, 1).seconds(chip) == pytest.approx(46.4, rel=0.03)


def test_processes_share_the_work_and_hold_all_gpus():
    part = Part("evaluate", "perplexity", flops=8e12, processes=2)
    alone = Part("evaluate", "samples", forwards=(Forwards(SMOLLM2, 100),))
    chip = Chip(1e12, 1e9)
    (shared, single) = timed([part, alone], chip, gpus=4, price=2.5)
    assert shared["seconds"] == 4 and shared["gpu_hours"] == 4 * 4 / 3600
    assert shared["dollars"] == shared["gpu_hours"] * 2.5
    assert single["seconds"] == pytest.approx(100 * SMOLLM2.weights / 1e9)
    assert timed([part], chip, 4, None)[0]["dollars"] is None
