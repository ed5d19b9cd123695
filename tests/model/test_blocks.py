"""Blocks skipped and removed: what is left behind, what travels with the model, what is refused."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.model.blocks import block_parameters, blocks_of_first, find_blocks, remove_blocks, skip_blocks
from pipeline.model.load import load_model
from tests.families import build


def test_the_original_indices_travel_and_the_first_dense_model_s_are_kept(tmp_path):
    model = build("llama")
    sizes = block_parameters(model)
    assert len(sizes) == 6 and len(set(sizes)) == 1
    total = model.num_parameters()
    remove_blocks(model, [4, 1])
    assert model.num_parameters() == total - 2 * sizes[0]
    first = {"dense_blocks": 6, "kept_blocks": [0, 2, 3, 5], "removed_blocks": [1, 4]}
    assert model.config.regrow == first
    model.save_pretrained(tmp_path)
    again = remove_blocks(load_model(tmp_path, dtype="float32"), [1])
    assert again.config.regrow == {"dense_blocks": 6, "kept_blocks": [0, 3, 5], "removed_blocks": [1, 2, 4]}
    assert load_model(tmp_path).config.regrow == first, "the folder's config changed under a second pruning"
    assert blocks_of_first(again) == (6, [0, 3, 5]) and blocks_of_first(build("llama")) is None


def test_skipping_is_undone_after_an_error_and_in_training_mode():
    model = build("llama").train()
    with pytest.raises(ZeroDivisionError), skip_blocks(model, [1, 2]):
        raise ZeroDivisionError
    assert not any("forward" in block.__dict__ or block._forward_hooks for block in find_blocks(model))
    assert model.training


def test_impossible_indices_are_refused():
    model = build("llama")
    for indices, words in (
        ([6], "blocks 0 to 5"),
        ([-1], "blocks 0 to 5"),
        ([1, 1], "stands twice"),
        (range(6), "at least one must stay"),
        ([2.0], r"blocks \[2\.0\]: a list of whole numbers is wanted"),
        (["2"], "whole numbers"),
        (2, "blocks 2: a list of whole numbers"),
    ):
        for way in (lambda: remove_blocks(model, indices), lambda: skip_blocks(model, indices).__enter__()):  # noqa: B023
            with pytest.raises(RegrowError, match=words):
                way()
    assert model.config.num_hidden_layers == len(find_blocks(model)) == 6, "a refused removal changed the model"


def test_a_replaced_forward_gives_back_the_one_that_it_found():
    model = build("llama")
    ids = torch.arange(12).view(1, -1)
    with torch.no_grad():
        plain = model(ids).logits
        with skip_blocks(model, [1]):
            outer = model(ids).logits
            with skip_blocks(model, [1, 2]):
                assert not model(ids).logits.equal(outer)
            assert model(ids).logits.equal(outer), "the context around it lost its forward"
        assert model(ids).logits.equal(plain) and not any("forward" in vars(block) for block in find_blocks(model))
