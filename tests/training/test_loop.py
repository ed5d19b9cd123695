"""The loop's bookkeeping on real engines: steps, tokens, rates, cursors; and what ends it in the middle of a step."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from tests.training.cases import each


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


def test_an_untrained_model_has_the_loss_of_a_uniform_guess(measured):
    """The loss is the mean over target tokens: ln 256 for 256 equally likely tokens, whatever the processes."""
    for processes in (1, 2):
        first = measured(processes)["parity-1-fp32"]["steps"][0]["loss"]
        assert first == pytest.approx(math.log(256), abs=0.05), f"{processes} processes: the first loss is {first}"


def test_cursors_stand_behind_the_last_row_of_every_lane(measured):
    """Two steps of 8 rows over 8 lanes: lane n has given rows n and n + 8; the cursor is that of the latter."""
    cursors = measured(2)["resume-1-bf16"]["cursors"]
    assert {int(lane): cursor["cursors"][0]["document"] for lane, cursor in cursors.items()} == {
        n: n + 9 for n in range(8)
    }


STOPPED = [
    *(f"stopped_gradient-{stage}-{dtype}" for stage in range(4) for dtype in ("fp32", "bf16")),
    *(f"stopped_loss-{stage}-bf16" for stage in range(4)),
]


@pytest.mark.parametrize("case", each("{}", STOPPED))
def test_a_step_that_is_not_finite_stops_every_process_and_moves_nothing(measured, case):
    """Rank 1 alone goes wrong in step 2: weights, fp32 masters, moments and the position are those of step 1."""
    found, what = measured(2)[case], "loss" if "loss" in case else "gradient norm"
    for rank, message in enumerate(found["messages"]):
        assert re.match(rf"training step 2: the {what} is not finite; the update was not made", message), (
            f"{case}: rank {rank} went on, or says something else: {message!r}"
        )
        assert "the weights are as step 1 left them" in message
    assert found["beside"] == [[], []], f"{case}: DeepSpeed speaks too: {found['beside']}"
    assert "rows 8 to 14" in found["messages"][0], "rank 0 does not name its rows"
    assert "rows 9 to 15" in found["messages"][1], "rank 1 does not name its rows"
    assert_nothing_moved_since_step_1(found)


def test_a_bad_step_too_many_stops_every_process(measured):
    """Two in a row are one too many: step 2 is skipped, step 3 ends training."""
    found = measured(2)["worn_out-3-bf16"]
    for message in found["messages"]:
        assert message.startswith("training step 3: the gradient norm is not finite; the update was not made"), message
        assert "This is bad step 2 in a row (train.bad_steps)." in message
    assert (found["step"], found["moved"]) == (2, [])


def assert_nothing_moved_since_step_1(found: dict[str, Any]) -> None:
    """Neither weights, fp32 masters and moments of any process, nor its position."""
    assert found["trained"] > 1e-5, "step 1 moved nothing, so that the comparison shows nothing"
    assert min(found["compared"]) > 0, f"weights, masters or moments were not compared: {found['compared']}"
    assert found["moved"] == [[], []], "these moved by a step that was not to be made"
    assert found["position"] == [True, True], "the step was counted, or its rows were"


def test_it_is_noted_which_micro_batch_is_at_work(measured):
    """8 rows over 2 processes in micro-batches of 2 are 2 for each process."""
    assert measured(2)["signs-1-fp32"]["noted"] == [
        f"step {step}: {doing} micro-batch {number} of 2"
        for step in (1, 2)
        for doing in ("reading", "computing")
        for number in (1, 2)
    ]


def test_a_step_s_seconds_and_speed_hold_what_was_done_before_it(measured):
    """The clock runs from yield to yield: the program pauses for 0.2 s after each step."""
    first, second = measured(2)["signs-1-fp32"]["steps"]
    assert second["seconds"] >= 0.2, "a pause between steps is in no step's seconds"
    assert second["data_wait"] < 0.2, "a pause between steps counts as waiting for rows"
    for step, tokens in ((first, first["tokens"]), (second, second["tokens"] - first["tokens"])):
        assert step["tokens_per_second"] == pytest.approx(tokens / step["seconds"])


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


@pytest.mark.parametrize("stage", each("no_target-{}-fp32", [0, 1, 3]))
def test_a_batch_without_a_target_stops_every_process_before_the_update(measured, stage):
    """In step 2, when there are moments whose decay would move the weights without any gradient."""
    found = measured(2)[f"no_target-{stage}-fp32"]
    for rank, message in enumerate(found["messages"]):
        assert message.startswith("training step 2: no document of the batch has a second token"), (
            f"rank {rank} went on, or says something else: {message!r}"
        )
    assert_nothing_moved_since_step_1(found)
