"""The slowest process of a step, on a real engine of which one process is slowed down."""

from __future__ import annotations

import pytest

from pipeline.training.own_time import Slowest
from tests.training.cases import each


def test_the_slowest_of_all_and_their_median():
    assert Slowest.of([0.5, 2.0, 1.0]) == Slowest(rank=1, seconds=2.0, median=1.0)


@pytest.mark.parametrize("stage", each("slowed-{}-fp32", [1, 2]))
def test_the_process_that_is_slow_is_named_whoever_waits_for_it(measured, stage):
    """Rank 1 sleeps for 0.2 s in each of two micro-batches. Rank 0 waits for it where gradients are summed, which
    under ZeRO 2 is once in each micro-batch."""
    for found in measured(2)[f"slowed-{stage}-fp32"]["slowest"]:
        assert found["rank"] == 1
        assert found["seconds"] >= 0.4
        assert 2 * found["median"] - found["seconds"] < 0.3, "rank 0's seconds hold what it waited for rank 1"
