"""Greedy selection against models from which the blocks were really removed, one round after another."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.cut import Cut
from pipeline.importance.greedy import greedy_rounds
from pipeline.importance.selection import order_blocks
from pipeline.importance.sweep import removal_losses
from pipeline.model.blocks import find_blocks, remove_blocks, skip_blocks
from pipeline.model.loss import next_token_losses
from tests.families import BLOCKS, VOCABULARY, build

FREE = {"protect_first": 0, "protect_last": 0}
IDS = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def perplexity(model, removed):
    cut = remove_blocks(deepcopy(model), removed) if removed else model
    return next_token_losses(cut(IDS, use_cache=False).logits, IDS).double().mean().exp().item()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_every_round_takes_the_best_of_the_blocks_that_are_left(family):
    model = build(family)
    gone: list[int] = []
    for found in greedy_rounds(model, IDS.split(2), Cut(remove=4, **FREE)):
        expected = {block: perplexity(model, sorted([*gone, block])) for block in range(BLOCKS) if block not in gone}
        assert found.candidates == pytest.approx(expected, rel=1e-4), f"{family}, round {len(gone) + 1}"
        assert found.dense == pytest.approx(perplexity(model, sorted(gone)), rel=1e-4)
        gone.append(found.removed)
        assert found.removed == min(found.candidates, key=found.candidates.__getitem__)
        assert found.perplexity == pytest.approx(min(expected.values()), rel=1e-4)
    assert len(gone) == 4 and model.config.num_hidden_layers == BLOCKS
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__), "left behind"


def test_greedy_is_not_one_shot():
    """On this model the second choice depends on the first: else the rounds could be a sorted list and pass."""
    model = build("llama")
    greedy = [found.removed for found in greedy_rounds(model, [IDS], Cut(remove=5, **FREE))]
    one_shot = order_blocks(removal_losses(model, IDS)[:-1].sum(dim=1).tolist())[:5]
    assert greedy[0] == one_shot[0] and greedy != one_shot


def test_protected_blocks_run_and_are_not_tried():
    model = build("llama")
    rounds = list(greedy_rounds(model, [IDS], Cut(remove=3, protect_first=2, protect_last=1)))
    assert sorted(found.removed for found in rounds) == [2, 3, 4]
    assert list(rounds[0].candidates) == [2, 3, 4] and len(rounds[2].candidates) == 1


def test_where_it_stops():
    model = build("llama")
    every = list(greedy_rounds(model, [IDS], Cut(remove=5, **FREE)))
    assert [found.removed for found in greedy_rounds(model, [IDS], Cut(ratio=0.5, **FREE))] == [
        found.removed for found in every[:3]
    ]
    sizes = [sum(p.numel() for p in block.parameters()) for block in find_blocks(model)]
    target = sum(p.numel() for p in model.parameters()) - 2 * sizes[0]
    assert len(list(greedy_rounds(model, [IDS], Cut(parameters=target, **FREE)))) == 2
    # The perplexity may fall on the way: it stops before the first round that would end above the budget.
    budget = sorted(found.perplexity for found in every)[3]
    first_above = next(number for number, found in enumerate(every) if found.perplexity > budget)
    within = list(greedy_rounds(model, [IDS], Cut(perplexity=budget, **FREE)))
    assert [found.removed for found in within] == [found.removed for found in every[:first_above]]
    assert list(greedy_rounds(model, [IDS], Cut(perplexity=0.5, **FREE))) == []
    with pytest.raises(RegrowError, match="named blocks does not say how many"):
        list(greedy_rounds(model, [IDS], Cut(blocks=(1, 2))))
    with pytest.raises(RegrowError, match="only 3 of 6 blocks may go"):
        list(greedy_rounds(model, [IDS], Cut(remove=4, protect_first=2, protect_last=1)))
    with pytest.raises(RegrowError, match="no batch"):
        list(greedy_rounds(model, [], Cut(remove=1, **FREE)))


def test_rounds_go_on_where_a_killed_selection_was():
    model = build("llama")
    every = list(greedy_rounds(model, [IDS], Cut(remove=4, **FREE)))
    done = [found.removed for found in every[:2]]
    assert list(greedy_rounds(model, [IDS], Cut(remove=4, **FREE), done=done)) == every[2:]
    with pytest.raises(RegrowError, match=r"blocks \[0, 3\] are done, but \[0, 5\] are protected"):
        list(greedy_rounds(model, [IDS], Cut(remove=2, protect_first=1, protect_last=1), done=[3, 0]))


def test_the_sweep_of_a_shortened_model_is_the_sweep_of_the_one_that_is_really_shorter():
    model = build("gemma3")
    losses = removal_losses(model, IDS, without=[0, 5])
    with skip_blocks(model, [0, 5]), torch.no_grad():
        dense = next_token_losses(model(IDS, use_cache=False).logits, IDS).double().sum(dim=1)
    assert torch.allclose(losses[-1], dense, rtol=1e-5)
    shorter = removal_losses(remove_blocks(deepcopy(model), [0, 5]), IDS)
    assert losses.shape == (5, 3) and torch.allclose(losses, shorter, rtol=1e-5)
    assert torch.allclose(removal_losses(model, IDS, blocks=[2, 3], without=[0, 5]), losses[[1, 2, 4]], rtol=1e-5)
    for wrong in ([5], [3, 2], [2, 2], [6]):
        with pytest.raises(RegrowError, match=r"wanted are some of \[1, 2, 3, 4\], in rising order"):
            removal_losses(model, IDS, blocks=wrong, without=[0, 5])
