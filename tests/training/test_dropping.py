"""Steps that are skipped: nothing moves, and nothing of them is left in later ones, at every ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.cases import each

REASONS = {
    "skipped_spike": "the loss is a spike: ",
    "skipped_gradient": "the gradient norm is not finite",
    "skipped_loss": "the loss is not finite",
}
ALL = [
    *(f"{what}-{stage}-{dtype}" for what in list(REASONS)[:2] for stage in range(4) for dtype in ("bf16", "fp32")),
    *(f"skipped_loss-{stage}-bf16" for stage in range(4)),
]


@pytest.mark.parametrize("case", each("{}", ALL))
def test_a_skipped_step_leaves_no_trace(measured, case):
    """Step 2 of 3 goes wrong on rank 1 alone, in both of its micro-batches."""
    assert_no_trace(measured(2)[case], REASONS[case.split("-")[0]])


def assert_no_trace(found: dict[str, Any], reason: str) -> None:
    assert min(found["compared"]) > 0, f"weights, masters, moments or counts were not compared: {found['compared']}"
    assert min(map(len, found["trained"])) > 0, "steps 1 and 3 moved nothing, so that the comparison shows nothing"
    assert found["moved"] == [[], []], "these moved by a step that was skipped"
    assert found["place"] == [2, 512], "the step's number, or its rows, are not spent"
    for rank, ((step, rows, said), (after, _, good)) in enumerate(found["told"]):
        assert (step, rows) == (2, list(range(8 + rank, 16, 2)))
        assert said.startswith(reason), f"rank {rank} says {said!r}"
        assert (after, good) == (3, None)
    assert found["step"]["grad_norm"] is None
    assert found["differing"] == [[], []], "step 3 ends elsewhere than where step 2 never was"
    assert found["after"] == found["same"], "step 3 has another loss or norm than where step 2 never was"
