"""The sweep against the models that it stands for: each block left out, and each block really gone."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.sweep import removal_losses
from pipeline.model.blocks import find_blocks, remove_blocks, skip_blocks
from pipeline.model.load import load_model
from pipeline.model.loss import next_token_losses
from tests.families import BLOCKS, FAMILIES, OTHERS, VOCABULARY, build


@torch.no_grad()
def summed(model, ids):
    return next_token_losses(model(ids, use_cache=False).logits, ids).double().sum(dim=1)


def by_skipping(model, ids):
    rows = []
    for block in range(len(find_blocks(model))):
        with skip_blocks(model, [block]):
            rows.append(summed(model, ids))
    return torch.stack([*rows, summed(model, ids)])


def by_removing(model, ids):
    removed = (remove_blocks(deepcopy(model), [block]) for block in range(len(find_blocks(model))))
    return torch.stack([*(summed(one, ids) for one in removed), summed(model, ids)])


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_one_pass_equals_skipping_and_removing_each_block(family):
    model = build(family)
    generator = torch.Generator().manual_seed(1)
    # One sequence; several; as many as heads, and as tokens, so that an axis could be taken for another.
    for rows, length in ((1, 24), (3, 24), (4, 24), (12, 12)):
        ids = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
        swept = removal_losses(model, ids)
        assert swept.shape == (BLOCKS + 1, rows) and swept.dtype == torch.float64
        # That removing is skipping in the other families is tests/model/test_families.py's.
        ways = [("skipped", by_skipping)] + ([("removed", by_removing)] if rows == 3 and family in FAMILIES else [])
        for name, expected in ((name, way(model, ids)) for name, way in ways):
            worst = ((swept - expected) / (length - 1)).abs().max().item()
            assert worst < 1e-5, f"{family}, {rows} x {length}: {worst:.1e} nats from the model with a block {name}"
        means = swept.mean(dim=1) / (length - 1)
        assert means.std() > 2e-3, "all blocks weigh the same here: the test shows nothing"
    blocks = find_blocks(model)
    assert not any(b._forward_hooks or b._forward_pre_hooks or "forward" in b.__dict__ for b in blocks), (
        "the sweep left hooks or forwards behind"
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom", "mixtral"])
def test_windows_of_neighbours_equal_skipping_them_and_leave_the_blocks_rows_alone(family):
    model = build(family)
    ids = torch.randint(0, VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(2))
    windows = [(start, n) for n in (4, 2) for start in range(BLOCKS - n + 1)]
    swept = removal_losses(model, ids, windows=windows)
    assert swept.shape == (BLOCKS + len(windows) + 1, 3)
    alone = removal_losses(model, ids)
    worst = ((swept[[*range(BLOCKS), -1]] - alone) / 23).abs().max().item()
    assert worst < 1e-5, f"{family}: windows beside them moved the blocks' losses by {worst:.1e} nats"
    for (start, n), losses in zip(windows, swept[BLOCKS:], strict=False):
        with skip_blocks(model, range(start, start + n)):
            worst = ((losses - summed(model, ids)) / 23).abs().max().item()
        assert worst < 1e-5, f"{family}: {worst:.1e} nats from the model without {n} blocks from {start}"
    # Windows alone, in an order of the caller's own.
    mixed = removal_losses(model, ids, blocks=[], windows=[windows[-1], windows[0]])
    assert torch.allclose(mixed, swept[[-2, BLOCKS, -1]], rtol=1e-5)
    for wrong in ([(0, BLOCKS)], [(-1, 2)], [(BLOCKS - 1, 2)], [(0, 0)]):
        with pytest.raises(RegrowError, match="the model has blocks 0 to"):
            removal_losses(model, ids, windows=wrong)
    with pytest.raises(RegrowError, match="windows are left out of the whole model"):
        removal_losses(model, ids, windows=[(0, 2)], without=[4])


def test_a_trained_kind_of_model_in_bf16(tiny_model):
    """In bf16 a wider batch may take other kernels: equal to the rounding that the ties' tolerance stands for."""
    model = load_model(tiny_model, dtype="bfloat16")
    ids = torch.randint(0, 1000, (2, 48), generator=torch.Generator().manual_seed(0))
    difference = (removal_losses(model, ids) - by_skipping(model, ids)).abs().max().item() / 47
    assert difference < 1e-2, f"{difference} nats"
    full = load_model(tiny_model, dtype="float32")
    assert (removal_losses(full, ids) - by_skipping(full, ids)).abs().max().item() / 47 < 1e-6
    # A sequence's losses do not depend on its neighbours.
    alone = torch.cat([removal_losses(full, ids[:1]), removal_losses(full, ids[1:])], dim=1)
    assert torch.allclose(alone, removal_losses(full, ids), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_an_argument_whose_growth_with_the_batch_is_not_understood_is_refused_by_name(rows):
    """Bloom's bias is (batch x heads, ...), sequence after sequence. Here it comes head after head instead, which
    has the same shape: repeated as a whole it would give every sequence of a wider batch another head's slopes."""
    model = build("bloom")
    heads = model.config.n_head

    def head_after_head(block, args, kwargs):
        bias = kwargs["alibi"]
        return args, {**kwargs, "alibi": bias.view(-1, heads, *bias.shape[1:]).transpose(0, 1).reshape(bias.shape)}

    for block in find_blocks(model):
        block.register_forward_pre_hook(head_after_head, with_kwargs=True)
    ids = torch.randint(0, VOCABULARY, (rows, 12), generator=torch.Generator().manual_seed(1))
    shapes = rf"a tensor \({rows * heads}, 1, 12\) for a batch and a tensor \({2 * rows * heads}, 1, 12\)"
    with pytest.raises(RegrowError, match=rf"BloomBlock: argument alibi is {shapes}.*neither the same nor"):
        removal_losses(model, ids)


def test_losses_that_are_not_numbers_are_refused_and_nothing_is_left_behind():
    model = build("llama")
    with torch.no_grad():
        find_blocks(model)[2].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(RegrowError, match=r"losses without blocks \[0, 1, 3, 4, 5, 6\] are not numbers") as refusal:
        removal_losses(model, torch.ones(1, 8, dtype=torch.int64))
    assert str(refusal.value).endswith("model.layers.2.mlp.down_proj.weight has values that are not finite")
    with pytest.raises(IndexError):  # a token that the model does not have
        removal_losses(model, torch.full((1, 8), VOCABULARY))
    assert not any(b._forward_hooks or b._forward_pre_hooks or "forward" in b.__dict__ for b in find_blocks(model))
