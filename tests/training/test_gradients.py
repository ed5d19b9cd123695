"""The gradient on real engines: the precision of its sums, who gets none, and what a router's loss adds to it."""

from __future__ import annotations

import pytest

from tests.training.cases import each


@pytest.mark.parametrize("stage", each("precise-{}-bf16", range(4)))
def test_sums_of_gradients_weights_and_moments_are_kept_in_fp32(measured, stage):
    """Other rows on each process, 4 micro-batches each: errors relative to a reference that keeps more bits."""
    found = measured(2)[f"precise-{stage}-bf16"]
    assert found["gradient"] < 1e-6, f"ZeRO {stage}: the reduced gradient is off by {found['gradient']:.1e}"
    assert found["weights"] < 1e-5, f"ZeRO {stage}: updated weights are off by {found['weights']:.1e} of the update"
    assert found["dtypes"] == ["torch.float32"], f"ZeRO {stage}: master weights and moments are {found['dtypes']}"
    for place in ("accumulated_in_bf16", "reduced_in_bf16", "weights_in_bf16"):
        assert found[place] > 1e-3, f"{place} gives {found[place]:.1e}, and would pass as well: shows nothing"


@pytest.mark.parametrize("stage", each("unreached-{}-bf16", range(4)))
def test_what_text_does_not_reach_is_left_as_it_is(measured, stage):
    """Three updates with a decay of 1, in bf16, over 2 processes; and a checkpoint of them."""
    found = measured(2)[f"unreached-{stage}-bf16"]
    assert found["unreached"] == ["tower.bias", "tower.weight"]
    still = sorted(set(found["all"]) - set(found["moved"]))
    assert still == found["unreached"], f"ZeRO {stage}: these kept their bits: {still}"
    assert found["lost"] == [], f"ZeRO {stage}: a checkpoint brings back other weights: {found['lost']}"


@pytest.mark.parametrize("stage", each("kept-{}-bf16", range(4)))
@pytest.mark.parametrize("family", ["ernie", "deepseek"])
def test_an_export_keeps_what_has_no_gradient_bit_for_bit(measured, family, stage):
    """A bias in fp32 whose values are no bf16 numbers: a parameter, or a buffer; and the router beside it."""
    found = measured(2)[f"kept-{stage}-bf16"][family]
    assert len(found["biases"]) == 2 and all(found["biases"].values()), f"ZeRO {stage}: a bias is another"
    assert found["dtypes"] == [], f"ZeRO {stage}: of another dtype than in the pruned model: {found['dtypes']}"
    routers = [f"model.layers.{block}.mlp.gate.weight" for block in (0, 1)]
    assert set(routers) <= set(found["moved"]), "the routers were not trained, so that nothing is shown"
    narrowed = routers if stage else []
    assert found["narrowed"] == narrowed, f"ZeRO {stage}: told of as trained in bf16: {found['narrowed']}"
    assert [name for name in routers if name in found["rounded"]] == narrowed, f"ZeRO {stage}: what is told is untrue"


@pytest.mark.parametrize("stage", each("passed_over-{}-fp32", [0, 1]))
def test_an_expert_that_a_batch_passes_over_is_decayed_on_every_stage(measured, stage):
    """It is trained, so that AdamW shrinks it by the rate times the decay of 1, gradient or not."""
    found = measured(2)[f"passed_over-{stage}-fp32"]
    assert found["unreached"] == [], "an expert that text can reach was left out"
    assert found["kept"] == pytest.approx([1 - found["rate"]] * 2, abs=1e-6), f"ZeRO {stage}: {found['kept']} is left"


@pytest.mark.parametrize("stage", each("routed-{}-fp32", [0, 3]))
def test_the_routers_loss_is_added_as_its_config_asks(measured, stage):
    """With and without recomputed activations, which run the router twice."""
    found = measured(2)[f"routed-{stage}-fp32"]
    assert max(found["errors"]) < 1e-5, f"ZeRO {stage}: the gradient is off by {found['errors']}"
    assert found["of_the_tokens_alone"] > 1e-2, "the gradient without the router's loss would pass as well"
    tokens, auxiliary = found["losses"]
    for step in found["steps"]:
        assert step["loss"] == pytest.approx(tokens, rel=1e-6), "loss is not the token loss alone"
        assert step["auxiliary_loss"] == pytest.approx(auxiliary, rel=1e-6)


def test_no_auxiliary_loss_is_told_of_where_there_is_none(measured):
    assert [step["auxiliary_loss"] for step in measured(2)["parity-1-fp32"]["steps"]] == [None] * 3
