"""The loop's bookkeeping on real engines: steps, tokens, rates, cursors; and what it does with a broken loss."""

from __future__ import annotations

import math

import pytest


def test_steps_tokens_and_rates_are_those_of_the_global_batch(measured):
    steps = measured(2)["parity-1-fp32"]["steps"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert [step["tokens"] for step in steps] == [256, 512, 768], "a step is 8 rows of 32 tokens over all processes"
    assert [step["learning_rate"] for step in steps] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3]), (
        "the rate of a step is not the one that was asked for"
    )
    for step in steps:
        assert step["tokens_per_second"] == pytest.approx(256 / step["seconds"]), "speed is not tokens over time"
        assert 0 <= step["data_wait"] < step["seconds"]
        assert step["mfu"] is None


def test_an_untrained_model_has_the_loss_of_a_uniform_guess(measured):
    """The loss is the mean over target tokens: ln 256 for 256 equally likely tokens, whatever the processes."""
    for processes in (2, 4):
        first = measured(processes)["parity-1-fp32"]["steps"][0]["loss"]
        assert first == pytest.approx(math.log(256), abs=0.05), f"{processes} processes: the first loss is {first}"


def test_cursors_stand_behind_the_last_row_of_every_lane(measured):
    """Two steps of 8 rows over 8 lanes: lane n has given rows n and n + 8; the cursor is that of the latter."""
    cursors = measured(2)["resume-1-bf16"]["cursors"]
    assert {int(lane): cursor["document"] for lane, cursor in cursors.items()} == {n: n + 9 for n in range(8)}


def test_a_loss_that_is_not_finite_stops_every_process_before_the_update(measured):
    found = measured(2)["poisoned"]
    for rank, message in enumerate(found["messages"]):
        assert message.startswith("training step 1: the loss is nan"), f"rank {rank} went on: {message!r}"
    assert "rows 0 to 6" in found["messages"][0], "rank 0 does not name its rows"
    assert "rows 1 to 7" in found["messages"][1], "rank 1 does not name its rows"
    assert found["untouched"] == [True, True], "weights were updated with a gradient that is not finite"


def test_every_process_tells_which_rows_a_step_took(measured):
    """Row g belongs to rank g mod 2; a step takes 8 rows; the hash is that of the row's ids as 8-byte integers."""
    found = measured(2)["within-1-fp32"]
    for rank, told in enumerate(found["samples"]):
        assert [step for step, _ in told] == [1, 2, 3]
        for step, samples in told:
            indices = [sample["index"] for sample in samples]
            assert indices == list(range((step - 1) * 8 + rank, step * 8, 2)), f"rank {rank}, step {step}"
            assert [sample["lane"] for sample in samples] == [index % 8 for index in indices]
            assert [sample["sha256"] for sample in samples] == [found["hashes"][index][:16] for index in indices]
    assert len(set(found["hashes"])) == 24


def test_a_batch_without_a_target_stops_every_process_before_the_update(measured):
    found = measured(2)["within-1-fp32"]
    for rank, message in enumerate(found["messages"]):
        assert message.startswith("training step 1: no document of the batch has a second token"), f"rank {rank}"
    assert found["untouched"], "weights were updated by a batch that has no target"
