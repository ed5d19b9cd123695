"""Gradients added in one pass, beside DeepSpeed's own two."""

from __future__ import annotations

MICRO_BATCHES = 4


def test_one_pass_gives_the_same_weights_and_writes_no_copies(measured):
    found = measured(2)["sums-1-bf16"]
    ours, deepspeeds = found["copies"]
    assert found["difference"] == 0, f"a weight differs by {found['difference']}"
    spared = found["parameters"] * MICRO_BATCHES
    assert deepspeeds - ours == spared, f"{ours} and {deepspeeds} copies: {spared} were to be spared"
