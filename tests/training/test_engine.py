"""Real DeepSpeed engines in 1, 2 and 4 processes beside a plain torch loop: the same losses, norms and weights."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.cases import each

FP32 = [
    *((processes, stage) for processes in (1, 2) for stage in range(4)),
    *(pytest.param(4, stage, marks=pytest.mark.slow) for stage in (1, 2, 3)),
]


@pytest.mark.parametrize(("processes", "stage"), FP32)
def test_fp32_training_equals_the_plain_loop(measured, processes, stage):
    found = measured(processes)[f"parity-{stage}-fp32"]
    assert_equal_to_the_plain_loop(found, f"ZeRO {stage}, {processes} processes")
    # Around the clip threshold of 1: both a clipped step and one that is left alone are among them.
    assert max(found["norms"]) > 1 > min(found["norms"]), f"the steps do not show clipping: norms {found['norms']}"


@pytest.mark.parametrize("stage", each("within-{}-fp32", [1, 3]))
def test_training_within_documents_equals_documents_run_alone(measured, stage):
    """The reference gives each document a forward of its own; the mean is over the targets of the global batch."""
    found, across = measured(2)[f"within-{stage}-fp32"], measured(2)[f"parity-{stage}-fp32"]
    assert_equal_to_the_plain_loop(found, f"within documents, ZeRO {stage}")
    assert abs(found["losses"][0] / across["losses"][0] - 1) > 1e-3, "whole rows have this loss too: shows nothing"


def test_training_on_responses_alone_equals_a_loss_of_them_alone(measured):
    """The mean is over the targets of the global batch, of which each process has another number."""
    found, whole = measured(2)["masked-1-fp32"], measured(2)["parity-1-fp32"]
    assert_equal_to_the_plain_loop(found, "responses alone")
    assert abs(found["losses"][0] / whole["losses"][0] - 1) > 1e-4, "whole rows have this loss too: shows nothing"


def assert_equal_to_the_plain_loop(found: dict[str, Any], where: str) -> None:
    losses = [step["loss"] for step in found["steps"]]
    norms = [step["grad_norm"] for step in found["steps"]]
    assert losses == pytest.approx(found["losses"], rel=1e-6), f"{where}: losses differ from the plain loop's"
    assert norms == pytest.approx(found["norms"], rel=1e-5), f"{where}: gradient norms differ from the plain loop's"
    assert found["difference"] <= 1e-5, f"{where}: a weight differs by {found['difference']}"
    assert found["moved"] > 1e-3, "the weights hardly moved, so that their equality shows nothing"


@pytest.mark.parametrize("stage", each("parity-{}-bf16", range(4)))
def test_bf16_training_stays_near_the_fp32_loop(measured, stage):
    """Losses within 1e-3 and norms within 1e-2 of fp32; the update points the same way (cosine above 0.99)."""
    found = measured(2)[f"parity-{stage}-bf16"]
    losses = [step["loss"] for step in found["steps"]]
    norms = [step["grad_norm"] for step in found["steps"]]
    assert losses == pytest.approx(found["losses"], rel=1e-3), f"ZeRO {stage}: bf16 losses leave the fp32 ones"
    assert norms == pytest.approx(found["norms"], rel=1e-2), f"ZeRO {stage}: bf16 gradient norms leave the fp32 ones"
    assert found["cosine"] > 0.99, f"ZeRO {stage}: the update points elsewhere (cosine {found['cosine']})"
    assert losses != found["losses"], "bf16 gave the very losses of fp32: it was not bf16"
    assert found["dtypes"] == ["torch.bfloat16"], f"ZeRO {stage}: exported weights are {found['dtypes']}"


def test_micro_batches_of_one_equal_one_micro_batch_of_eight(measured):
    found = measured(2)["split-1-fp32"]
    assert found["accumulation"] == [8, 1]
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-5), "losses depend on the micro-batch"
    assert found["difference"] <= 1e-5, f"weights depend on the micro-batch: {found['difference']}"


@pytest.mark.parametrize("stage", each("export-{}-bf16", [1, 2, 3]))
def test_exported_weights_give_the_engines_logits_bit_for_bit(measured, stage):
    found = measured(2)[f"export-{stage}-bf16"]
    assert found["trained"], "training did not change the logits, so that their equality shows nothing"
    assert found["dtype"] == "torch.bfloat16"
    assert found["equal"], f"ZeRO {stage}: transformers alone computes other logits from the export than the engine"


@pytest.mark.parametrize("stage", each("recomputed-{}-fp32", [1, 3]))
def test_recomputed_activations_change_nothing(measured, stage):
    found = measured(2)[f"recomputed-{stage}-fp32"]
    none, selective, full = (found[what] for what in ("none", "selective", "full"))
    assert none["losses"] == selective["losses"] == full["losses"], "with gradient checkpointing they are others"
    assert none["products"] == selective["products"] < full["products"], "selective is to keep what products give"
    assert none["norms"] < selective["norms"] == full["norms"], "selective is to compute norms again"


@pytest.mark.parametrize("stage", each("compiled-{}-bf16", [0, 2]))
def test_compiled_blocks_train_as_those_that_are_not(measured, stage):
    found, eager = measured(2)[f"compiled-{stage}-bf16"], measured(2)[f"parity-{stage}-bf16"]
    for name, near in (("loss", 1e-3), ("grad_norm", 1e-2)):
        ours, theirs = ([step[name] for step in one["steps"]] for one in (found, eager))
        assert ours == pytest.approx(theirs, rel=near), f"{name} leaves what it is without compiling"
    assert found["cosine"] > 0.99, f"the update points elsewhere (cosine {found['cosine']})"
    # One for three equal blocks, one for the last norm, one for the loss of a chunk: and none anew, step for step.
    (line,) = found["compiled"]
    assert line.startswith("compiled: 3 graphs for 4 modules and the loss, in "), line


@pytest.mark.slow
def test_compiled_blocks_equal_the_plain_loop_within_documents_too(measured):
    found = measured(2)["compiled_within-1-fp32"]
    assert_equal_to_the_plain_loop(found, "compiled, within documents, recomputing selectively")
    (line,) = found["compiled"]
    assert line.startswith("compiled: 3 graphs"), line


@pytest.mark.slow
def test_under_zero_3_blocks_are_compiled_in_pieces_which_is_said(measured):
    found = measured(2)["compiled-3-fp32"]
    assert_equal_to_the_plain_loop(found, "compiled, ZeRO 3")
    assert any("compiled in pieces" in line for line in found["compiled"]), found["compiled"]


def test_blocks_that_do_not_compile_run_as_they_are(measured):
    found = measured(2)["uncompilable-1-fp32"]
    assert found["losses"][0] == found["losses"][1], "losses are others"
    (line,) = found["said"]
    assert line.startswith("the blocks do not compile, and run as they are: ") and "no-such-compiler" in line, line
