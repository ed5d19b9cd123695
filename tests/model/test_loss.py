"""Token losses against the definition, in fp64 by hand; and the router's loss against transformers' own objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DbrxConfig, JetMoeConfig, LlamaConfig, MixtralConfig, Qwen3VLMoeConfig

from pipeline.model.loss import (
    NO_ROUTER,
    computes_router_loss,
    describe_router_loss,
    document_targets,
    has_router,
    next_token_losses,
    router_coefficient,
)
from pipeline.training.reach import probe
from tests.families import build, build_multimodal


def test_losses_are_the_negative_log_probabilities_of_the_next_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 50, generator=generator) * 5
    ids = torch.randint(0, 50, (3, 9), generator=generator)
    losses = next_token_losses(logits, ids)
    assert losses.shape == (3, 8) and losses.dtype == torch.float32
    for row in range(3):
        for t in range(8):
            expected = -torch.log_softmax(logits[row, t].double(), dim=0)[ids[row, t + 1]]
            assert abs(losses[row, t].item() - expected.item()) < 1e-5, f"row {row}, token {t + 1}"


def test_bf16_logits_are_summed_in_fp32():
    logits = (torch.randn(1, 4, 30_000, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    ids = torch.tensor([[5, 6, 7, 8]])
    exact = torch.logsumexp(logits[0, :3].double(), dim=1) - logits[0, [0, 1, 2], [6, 7, 8]].double()
    losses = next_token_losses(logits, ids)
    assert torch.allclose(losses[0].double(), exact, atol=1e-4, rtol=0), "a softmax over many tokens lost precision"
    assert losses.dtype == torch.float32


def test_a_gradient_flows_through():
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    next_token_losses(logits, torch.tensor([[0, 1, 2]])).sum().backward()
    assert logits.grad[0, 2].abs().max() == 0, "the last position has no target"
    assert torch.allclose(logits.grad[0, 0], torch.tensor([0.25, -0.75, 0.25, 0.25]))


def test_tokens_that_are_not_counted_have_no_loss_and_no_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 6, 50, generator=generator) * 5).requires_grad_()
    ids = torch.randint(0, 50, (2, 6), generator=generator)
    counted = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], dtype=torch.bool)
    every, some = next_token_losses(logits, ids), next_token_losses(logits, ids, counted)
    assert torch.equal(every, next_token_losses(logits, ids, torch.ones_like(counted))), "counting all changes a loss"
    assert torch.equal(some[counted], every[counted]), "a counted loss is another than without the mask"
    assert (some[~counted] == 0).all() and (every[~counted] > 0).all(), "a token that does not count has a loss"
    some.sum().backward()
    felt = logits.grad.abs().amax(dim=-1)[:, :-1] > 0
    assert torch.equal(felt, counted), "the gradient is not that of the counted tokens alone"


def test_the_first_token_of_a_document_is_no_target():
    documents = [np.array(cu, dtype=np.int32) for cu in ([0, 6], [0, 1, 4, 6], [0, 1, 2, 3, 4, 5, 6])]
    counted = document_targets(documents, 6)
    assert counted.dtype == torch.bool
    assert counted.int().tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("made", "coefficient", "computed", "said"),
    [
        (
            MixtralConfig(router_aux_loss_coef=0.5, output_router_logits=True),
            0.5,
            True,
            "is added, with coefficient 0.5",
        ),
        (MixtralConfig(router_aux_loss_coef=0.02), None, True, "(coefficient 0.02) is off: "),
        (MixtralConfig(router_aux_loss_coef=0.0, output_router_logits=True), None, True, None),
        (JetMoeConfig(aux_loss_coef=0.03, output_router_logits=True), 0.03, True, "coefficient 0.03"),
        (DbrxConfig(ffn_config={"moe_loss_weight": 0.04}, output_router_logits=True), 0.04, True, "coefficient 0.04"),
        (
            Qwen3VLMoeConfig(text_config={"router_aux_loss_coef": 0.06, "output_router_logits": True}),
            0.06,
            False,
            "computes no",
        ),
        (LlamaConfig(), None, False, None),
    ],
    ids=["asked for", "not asked for", "zero", "JetMoE's name", "DBRX's name", "in a wrapper", "no experts"],
)
def test_the_routers_loss_is_what_the_config_states_and_asks_for(made, coefficient, computed, said):
    assert router_coefficient(made) == coefficient
    model = torch.nn.Module()
    model.config = made
    sentence = describe_router_loss(model, computed)
    assert sentence is None if said is None else said in sentence, sentence


@pytest.mark.parametrize("asked", [True, False])
def test_families_own_loss_agrees(asked):
    """transformers adds coefficient x aux_loss to its own loss where the config asks, and only there."""
    model = build("mixtral", router_aux_loss_coef=0.5, output_router_logits=asked)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        output = model(ids, labels=ids)
    tokens = next_token_losses(output.logits, ids).mean()
    added = (router_coefficient(model.config) or 0.0) * (output.aux_loss if asked else torch.zeros(()))
    assert (router_coefficient(model.config) is None) is not asked
    torch.testing.assert_close(output.loss, tokens + added, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("family", "computed"),
    [
        ("mixtral", True),
        ("qwen2_moe", True),
        ("jamba", True),
        ("minimax", True),
        ("llama4", False),
        ("qwen3_5_moe wrapper", True),
        ("llama4 wrapper", False),
    ],
)
def test_whether_a_class_computes_the_loss_is_what_its_forward_does(family, computed):
    """Known without a forward, and right: the plan has no weights to run one with."""
    name = family.removesuffix(" wrapper")
    model = build_multimodal(name) if family.endswith("wrapper") else build(name)
    text = model.config.get_text_config()
    text.output_router_logits = True
    assert (getattr(probe(model), "aux_loss", None) is not None) is computed
    assert computes_router_loss(model) is computed
    sentence = describe_router_loss(model, computed)
    assert ("is added" if computed else "computes no auxiliary loss") in sentence
    text.output_router_logits = False
    sentence = describe_router_loss(model, computed)
    assert "set it to true" in sentence if computed else sentence is None, sentence


def test_a_router_is_looked_for_in_the_blocks_that_stay():
    """Of six blocks all but 1 and 4 are sparse. A class that names no routers is not judged."""
    model = build("qwen3_moe", output_router_logits=True)
    assert has_router(model) and has_router(model, [0, 2, 3]) and not has_router(model, [0, 2, 3, 5])
    assert describe_router_loss(model, True, [0, 2, 3, 5]) == NO_ROUTER
    assert "is added" in describe_router_loss(model, True, [0, 2, 3])
    model.config.output_router_logits = False
    assert describe_router_loss(model, True, [0, 2, 3, 5]) is None, "to set it to true would be no advice"
    assert has_router(build("llama"))
