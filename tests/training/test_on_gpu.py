"""Training on one GPU, for whoever has it: the cases of this folder in a world of one, and those of device.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import Measured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: test.sh -m gpu there"),
]
STAGES = range(4)
SMALL = 10_000
CASES = [
    *(f"parity-{stage}-bf16" for stage in STAGES),
    *(f"compiled-{stage}-bf16" for stage in (0, 1, 2)),
    *(f"resume-{stage}-bf16" for stage in (0, 1)),
    *(f"reads-{stage}-bf16" for stage in STAGES),
    *(f"closed-{stage}-bf16" for stage in (0, 1, 3)),
]


@pytest.fixture(scope="module")
def found(once: Any, start: Any) -> Measured:
    def measure(folder: Path) -> None:
        start(1, folder, *CASES)

    folder = once("training-gpu", measure)
    return Measured(lambda case: folder)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("parity", "compiled"))])
def test_training_stays_near_the_fp32_loop(found, case):
    measured = found[case]
    losses, norms = ([step[name] for step in measured["steps"]] for name in ("loss", "grad_norm"))
    assert losses == pytest.approx(measured["losses"], rel=1e-3), f"{case}: losses leave the fp32 ones"
    assert norms == pytest.approx(measured["norms"], rel=1e-2), f"{case}: norms leave the fp32 ones"
    assert measured["cosine"] > 0.99, f"{case}: the update points elsewhere (cosine {measured['cosine']})"


@pytest.mark.parametrize("stage", [0, 1])
def test_deterministic_training_resumes_to_the_same_bits(found, stage):
    measured = found[f"resume-{stage}-bf16"]
    assert measured["equal"], f"ZeRO {stage}: two steps, a checkpoint and two more are not four steps"


#: Waits for the device in a step: two are the loop's, for the loss and for the norm, the rest are DeepSpeed's own step;
#: and of those in a micro-batch, DeepSpeed's reduction under ZeRO 3 alone.
WAITS, IN_A_MICRO_BATCH = (2, 6, 10, 7), (0, 0, 0, 2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_for_the_device_at_its_end_alone(found, stage):
    for accumulation, waits in found[f"reads-{stage}-bf16"].items():
        print(f"ZeRO {stage}, {accumulation} micro-batches: {len(waits)} waits, {waits}")
        most = WAITS[stage] + IN_A_MICRO_BATCH[stage] * int(accumulation)
        assert len(waits) <= most, f"ZeRO {stage}: a step of {accumulation} micro-batches waits otherwise: {waits}"
        ours = [wait for wait in waits if wait.startswith("pipeline/")]
        assert len(ours) <= 2, f"ZeRO {stage}: the loop itself waits {len(ours)} times: {ours}"


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_closed_engine_leaves_nothing_on_the_device(found, stage):
    measured = found[f"closed-{stage}-bf16"]
    assert measured["during"][0] - measured["before"] > 100 * SMALL, (
        "an engine took no memory, so that this shows nothing"
    )
    # Some small tensors of DeepSpeed's stay, 1.5 kB for each engine of ZeRO 3.
    assert abs(measured["during"][1] - measured["during"][0]) < SMALL > measured["after"] - measured["before"], measured
