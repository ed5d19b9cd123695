"""Compiled blocks beside those that are not, family by family; and what is said of the compiling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.model.head import find_head, losses_at
from pipeline.model.loss import next_tokens
from pipeline.training.compiled import CompiledBlocks
from pipeline.training.reach import probe
from tests.families import FAMILIES, OTHERS, build

IDS = torch.randint(0, 190, (2, 24), generator=torch.Generator().manual_seed(0))


def measured(model: nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of the rows, and every gradient."""
    head = find_head(model)
    model.zero_grad()
    with losses_at(head, next_tokens(IDS)) as taken:
        model(input_ids=IDS, use_cache=False)
    taken.objective.backward()
    named = model.named_parameters()
    return float(taken.total.detach()), {name: p.grad.clone() for name, p in named if p.grad is not None}


def require_same(family: str) -> list[str]:
    """The family's loss and gradients are those that it has without compiling; returns what was said."""
    torch._dynamo.reset()
    model = build(family)
    wanted, gradients = measured(model)
    blocks = CompiledBlocks(model)
    found, ours = measured(model)
    assert found == pytest.approx(wanted, rel=1e-5), f"{family}: the loss is another"
    assert ours.keys() == gradients.keys()
    # Of a gradient that is a millionth of the whole a thousandth is fp32's rounding, compiled or not; and the bias of
    # keys has none but rounding: softmax does not feel it.
    least = 1e-4 * float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
    for name, gradient in gradients.items():
        error = float((ours[name] - gradient).norm() / gradient.norm().clamp(min=least))
        assert error < 1e-3, f"{family}: the gradient of {name} is off by {error:.1e} of its norm"
    return list(blocks.news())


@pytest.mark.slow
def test_a_family_with_two_kinds_of_layers_compiles():
    said = require_same("gemma2")
    assert said and said[0].startswith("compiled: ") and not any("pieces" in line for line in said), said


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in (*FAMILIES, *OTHERS) if family != "gemma2"])
def test_every_family_compiles_or_runs_as_it_is(family):
    print(family, require_same(family))


def test_another_shape_is_compiled_anew_and_said():
    torch._dynamo.reset()
    model = build("llama")
    blocks = CompiledBlocks(model)
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
        (first,) = blocks.news()
        model(input_ids=IDS, use_cache=False)
        assert list(blocks.news()) == [], "the same shape was compiled twice"
        model(input_ids=IDS[:, :8], use_cache=False)
        (second,) = blocks.news()
    assert first.startswith("compiled: 2 graphs for 7 modules and the loss, in "), first
    assert second.startswith("compiled anew: 2 graphs for another shape or mode, in "), second


def test_the_norm_behind_the_blocks_is_one_of_them():
    model = build("llama")
    assert CompiledBlocks(model).parts == [*model.model.layers, model.model.norm]
    bloom = build("bloom")
    assert CompiledBlocks(bloom).parts[-1] is bloom.transformer.ln_f, "the norm before the blocks is not behind them"


def test_what_text_reaches_is_found_without_compiling_for_it():
    """The probe's few tokens are another shape: they are sent through before the blocks are compiled."""
    model = build("llama")
    probe(model)
    assert list(CompiledBlocks(model).news()) == []
