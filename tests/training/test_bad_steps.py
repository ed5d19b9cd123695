"""Which steps are bad, and which one ends training."""

from __future__ import annotations

import math

import pytest

from pipeline.training.bad_steps import BadSteps


def seen(losses: list[float], **options: float) -> BadSteps:
    """Behind steps with these losses."""
    bad_steps = BadSteps(**options)
    for loss in losses:
        bad_steps.note(loss, skipped=False)
    return bad_steps


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "divergence"])
def test_any_loss_that_is_not_finite_is_bad(name, value):
    assert BadSteps().fault({"loss": 2.0, "divergence": 1.0}) is None
    assert BadSteps().fault({"loss": 2.0, "divergence": 1.0, name: value}) == "the loss is not finite"


def test_a_loss_far_above_the_median_is_a_spike():
    """Of 1, 2, 3, 4, 10 the median is 3, and that of the deviations 2, 1, 0, 1, 7 is 1: three times that is 6."""
    bad_steps = seen([1, 2, 3, 4, 10], spike=3, window=5)
    assert bad_steps.fault({"loss": 6.0}) is None
    assert bad_steps.fault({"loss": 0.0}) is None, "a loss far below is a spike"
    assert bad_steps.fault({"loss": 6.001}) == (
        "the loss is a spike: 6.0010, above the median 3.0000 of the last 5 by more than 3 times their median absolute "
        "deviation 1.0000"
    )


def test_only_the_last_finite_losses_count_and_none_before_there_are_so_many():
    assert seen([1, 2, 3, 4], spike=3, window=5).fault({"loss": 99.0}) is None, "too few to compare with"
    assert seen([900, 900, 900, 1, 2, 3, math.nan, 4, 10], spike=3, window=5).fault({"loss": 6.001}), "older ones count"
    assert seen([1, 2, 3, 4, 10], window=5).fault({"loss": 99.0}) is None, "nobody asked"


@pytest.mark.parametrize(("limit", "skipped"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_so_many_in_a_row_end_training(limit, skipped):
    bad_steps = BadSteps(limit)
    for _ in range(skipped):
        assert not bad_steps.last_straw
        bad_steps.note(math.nan, skipped=True)
    assert bad_steps.last_straw, f"bad step {skipped + 1} of {limit} in a row does not end training"
    bad_steps.note(2.0, skipped=False)
    assert bad_steps.last_straw == (limit < 2), "a good step between them does not begin the count anew"


def test_recalled_from_metrics_it_decides_the_same():
    """A spike that was skipped stays among the losses, so that a lasting change becomes what others are compared with;
    null is a loss that was not finite."""
    lines = [
        {"loss": 1.0},
        {"loss": 2.0},
        {"loss": 3.0},
        {"loss": 4.0},
        {"loss": None, "skipped": True},
        {"loss": 10.0, "skipped": True},
    ]
    bad_steps = BadSteps(3, 3.0, window=5)
    bad_steps.recall(lines)
    assert bad_steps.in_a_row == 2
    assert bad_steps.last_straw
    assert bad_steps.fault({"loss": 6.0}) is None
    assert bad_steps.fault({"loss": 6.001}) is not None
