"""Blocks found, skipped and removed, in families whose blocks differ: several ways to the same logits."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from families import BLOCKS, FAMILIES, SLIDING, VOCABULARY, build
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from pipeline.model.blocks import block_parameters, find_blocks, per_block_lists, remove_blocks, skip_blocks
from pipeline.model.equivalence import cached_logits, full_logits, probe_ids
from pipeline.model.load import load_model
from pipeline.run import RegrowError

IDS = probe_ids(VOCABULARY)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_is_removed_is_reloaded(family, tmp_path):
    dense = build(family)
    before = full_logits(dense, IDS)
    removed = [2, 3]  # in the sliding families: a global block and a local one
    with skip_blocks(dense, removed):
        skipped, skipped_cached = full_logits(dense, IDS), cached_logits(dense, IDS)
    assert full_logits(dense, IDS).equal(before), "skipping left something behind"
    assert not any("forward" in block.__dict__ for block in find_blocks(dense))
    assert apart(before, skipped) > 1e-2, "the skipped blocks did nothing in this model: the test shows nothing"

    pruned = remove_blocks(dense, removed)
    assert apart(skipped, full_logits(pruned, IDS)) < 1e-6, "a removed block is not a skipped one"
    assert apart(skipped_cached, cached_logits(pruned, IDS)) < 1e-6, "... through the cache"
    assert apart(full_logits(pruned, IDS), cached_logits(pruned, IDS)) < 1e-4, "the cache changes the logits"
    pruned.save_pretrained(tmp_path)
    reloaded = load_model(tmp_path, dtype=torch.float32)
    assert full_logits(reloaded, IDS).equal(full_logits(pruned, IDS)), "the saved model computes something else"
    assert cached_logits(reloaded, IDS).equal(cached_logits(pruned, IDS))
    for model in (pruned, reloaded):
        assert model.config.num_hidden_layers == len(find_blocks(model)) == BLOCKS - 2
        indices = [{m.layer_idx for m in block.modules() if isinstance(getattr(m, "layer_idx", None), int)}
                   for block in find_blocks(model)]  # fmt: skip
        assert all(found <= {number} for number, found in enumerate(indices)), f"not renumbered: {indices}"


def test_a_list_of_the_config_keeps_the_entries_of_the_kept_blocks():
    qwen = remove_blocks(build("qwen2"), [0, 2, 3])
    assert qwen.config.layer_types == [SLIDING[1], SLIDING[4], SLIDING[5]]
    assert [block.self_attn.sliding_window for block in find_blocks(qwen)] == [8, 8, None]
    smol = build("smollm3")
    assert set(per_block_lists(smol.config, BLOCKS)) == {"no_rope_layers", "layer_types"}
    assert remove_blocks(smol, [0, 1]).config.no_rope_layers == [0, 1, 1, 0]
    # Lists that have that length by accident are no lists of blocks.
    two = LlamaConfig(num_hidden_layers=2, eos_token_id=[1, 2], architectures=["A", "B"])
    assert per_block_lists(two, 2) == {}, "a list that is not about blocks would be cut"


def test_the_original_indices_travel_and_the_first_dense_model_s_are_kept(tmp_path):
    model = build("llama")
    sizes = block_parameters(model)
    assert len(sizes) == BLOCKS and len(set(sizes)) == 1
    total = model.num_parameters()
    remove_blocks(model, [4, 1])
    assert model.num_parameters() == total - 2 * sizes[0]
    first = {"dense_blocks": 6, "kept_blocks": [0, 2, 3, 5], "removed_blocks": [1, 4]}
    assert model.config.regrow == first
    model.save_pretrained(tmp_path)
    again = remove_blocks(load_model(tmp_path, dtype="float32"), [1])
    assert again.config.regrow == {"dense_blocks": 6, "kept_blocks": [0, 3, 5], "removed_blocks": [1, 2, 4]}
    assert load_model(tmp_path).config.regrow == first, "the folder's config changed under a second pruning"


def test_skipping_is_undone_after_an_error_and_in_training_mode():
    model = build("llama").train()
    with pytest.raises(ZeroDivisionError), skip_blocks(model, [1, 2]):
        raise ZeroDivisionError
    assert not any("forward" in block.__dict__ or block._forward_hooks for block in find_blocks(model))
    assert model.training


def test_impossible_indices_are_refused():
    model = build("llama")
    for indices, words in (([6], "blocks 0 to 5"), ([-1], "blocks 0 to 5"), ([1, 1], "stands twice"),
                           (range(6), "at least one must stay")):  # fmt: skip
        for way in (lambda: remove_blocks(model, indices), lambda: skip_blocks(model, indices).__enter__()):  # noqa: B023
            with pytest.raises(RegrowError, match=words):
                way()
    assert model.config.num_hidden_layers == len(find_blocks(model)) == 6, "a refused removal changed the model"


def test_a_model_without_one_list_of_blocks_is_refused_with_what_it_has():
    two_stacks = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2,
                                                     vocab_size=50))  # fmt: skip
    with pytest.raises(RegrowError, match=r"T5ForConditionalGeneration: expected one list of 2 blocks.*encoder\.block"):
        find_blocks(two_stacks)
    odd = deepcopy(build("llama"))
    odd.config.num_hidden_layers = 5
    with pytest.raises(RegrowError, match=r"expected one list of 5 blocks of one class, found 0.*model\.layers \(6\)"):
        find_blocks(odd)
    assert isinstance(odd, LlamaForCausalLM)
