"""Real DeepSpeed engines in 2 and 4 processes beside a plain torch loop: the same losses, norms and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.training.engine import decay_groups

FP32 = [(2, stage) for stage in range(4)] + [(4, stage) for stage in (1, 2, 3)]


@pytest.mark.parametrize(("processes", "stage"), FP32)
def test_fp32_training_equals_the_plain_loop(measured, processes, stage):
    found = measured(processes)[f"parity-{stage}-fp32"]
    assert_equal_to_the_plain_loop(found, f"ZeRO {stage}, {processes} processes")
    # Around the clip threshold of 1: both a clipped step and one that is left alone are among them.
    assert max(found["norms"]) > 1 > min(found["norms"]), f"the steps do not show clipping: norms {found['norms']}"


@pytest.mark.parametrize("stage", [1, 3])
def test_training_within_documents_equals_documents_run_alone(measured, stage):
    """The reference gives each document a forward of its own; the mean is over the targets of the global batch."""
    found, across = measured(2)[f"within-{stage}-fp32"], measured(2)[f"parity-{stage}-fp32"]
    assert_equal_to_the_plain_loop(found, f"within documents, ZeRO {stage}")
    assert abs(found["losses"][0] / across["losses"][0] - 1) > 1e-3, "whole rows have this loss too: shows nothing"


def assert_equal_to_the_plain_loop(found: dict[str, Any], where: str) -> None:
    losses = [step["loss"] for step in found["steps"]]
    norms = [step["grad_norm"] for step in found["steps"]]
    assert losses == pytest.approx(found["losses"], rel=1e-6), f"{where}: losses differ from the plain loop's"
    assert norms == pytest.approx(found["norms"], rel=1e-5), f"{where}: gradient norms differ from the plain loop's"
    assert found["difference"] <= 1e-5, f"{where}: a weight differs by {found['difference']}"
    assert found["moved"] > 1e-3, "the weights hardly moved, so that their equality shows nothing"


@pytest.mark.parametrize("stage", range(4))
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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_exported_weights_give_the_engines_logits_bit_for_bit(measured, stage):
    found = measured(2)[f"export-{stage}-bf16"]
    assert found["trained"], "training did not change the logits, so that their equality shows nothing"
    assert found["dtype"] == "torch.bfloat16"
    assert found["equal"], f"ZeRO {stage}: transformers alone computes other logits from the export than the engine"


def test_recomputed_activations_change_nothing(measured):
    found = measured(2)["recomputed-3-fp32"]
    assert found["recomputes"], "gradient checkpointing was asked for, but is not on"
    assert found["losses"][0] == found["losses"][1], "losses with gradient checkpointing are others"


@pytest.mark.parametrize("tied", [True, False])
def test_decay_groups_hold_every_parameter_once(tied):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        attention_bias=True,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def spared(*kinds: str) -> set[str]:
        groups = decay_groups(model, 0.1, kinds)
        found = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(found) == sorted(names), f"{kinds}: a parameter is in no group, or in two"
        return {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}

    biases = {name for name in names.values() if name.endswith("bias")}
    norms = {name for name in names.values() if "norm" in name}
    assert len(biases) == 2 * 4, f"q, k, v and o have a bias in each of 2 blocks; found {sorted(biases)}"
    assert len(norms) == 2 * 2 + 1
    assert spared() == set()
    assert spared("bias") == biases
    assert spared("norm") == norms
    assert spared("bias", "norm", "embedding") == biases | norms | {"model.embed_tokens.weight"}
