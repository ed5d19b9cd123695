"""Blocks are found by structure, and blocks that are tied to each other are refused with the tie."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, T5Config, T5ForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks, remove_blocks, skip_blocks
from pipeline.model.structure import module_tree, require_separate_blocks
from tests.families import BLOCKS, GATED, build


def refused(model: Any, words: str) -> None:
    """Skipping and removing refuse alike, and leave the model as it was."""
    for way in (lambda: remove_blocks(model, [1]), lambda: skip_blocks(model, [1]).__enter__()):
        with pytest.raises(RegrowError, match=words):
            way()
    assert len(find_blocks(model)) == model.config.num_hidden_layers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_without_one_list_of_blocks_is_refused_with_its_module_tree():
    two_stacks = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=50)
    )
    with pytest.raises(RegrowError, match=r"expected one list of 2 blocks.*found 2 \(encoder\.block, decoder\.block\)"):
        find_blocks(two_stacks)
    odd = build("llama")
    odd.config.num_hidden_layers = 5
    tree = (
        "LlamaForCausalLM(model: LlamaModel(embed_tokens: Embedding, layers: 6 x LlamaDecoderLayer(self_attn: "
        "LlamaAttention(...), mlp: LlamaMLP(...),"
    )
    with pytest.raises(RegrowError, match=r"one list of 5 blocks.*found 0; its modules: " + re.escape(tree)):
        find_blocks(odd)
    bare = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RegrowError, match=r"no num_hidden_layers.*Sequential\(0: Linear\)"):
        find_blocks(bare)


def test_lists_of_experts_norms_and_vision_blocks_are_not_taken_for_the_blocks():
    model = build("llama")
    found = find_blocks(model)
    for block in found:  # as many experts as blocks
        block.mlp.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(BLOCKS))
    model.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(BLOCKS))
    model.vision = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(BLOCKS))
    assert find_blocks(model) is found is model.model.layers
    assert "layers: 6 x LlamaDecoderLayer" in module_tree(model) and len(module_tree(model)) < 1300


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_kv_shared_layers": 2}, r"last blocks read the keys and values.*config\.num_kv_shared_layers = 2"),
        ({"num_kv_shared_layers": 0}, r"per-layer embeddings.*config\.hidden_size_per_layer_input = 8"),
        (
            {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
            r"several streams.*config\.altup_num_inputs = 4",
        ),
    ],
)
def test_ties_that_the_config_names_are_refused(values, words):
    config = Gemma3nTextConfig(
        **{
            **GATED,
            "vocab_size_per_layer_input": 200,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            **values,
        }
    )
    with torch.device("meta"):
        refused(Gemma3nForCausalLM(config), f"Gemma3nForCausalLM: blocks cannot be removed.*{words}")


def test_blocks_that_share_parameters_are_refused():
    model = build("llama")
    model.model.layers[4].mlp = model.model.layers[1].mlp
    refused(model, r"blocks 1 and 4 share the parameter mlp\.gate_proj\.weight")


class Chain(nn.Module):
    """A decoder that is only its blocks, with ways to tie them."""

    def __init__(self, tie: str | None) -> None:
        super().__init__()
        self.config, self.tie = build("llama").config, tie
        self.embed = nn.Embedding(200, 32)
        self.blocks = nn.ModuleList(LlamaDecoderLayer(self.config, index) for index in range(BLOCKS))
        self.rotary = build("llama").model.rotary_emb

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        hidden = self.embed(input_ids)
        positions = self.rotary(hidden, torch.arange(input_ids.shape[1])[None])
        kept = None
        for index, block in enumerate(self.blocks):
            if self.tie == "between" and index == 3:
                hidden = hidden + 1
            extra = {"first": {"values": [kept]}} if self.tie == "beside" and index == 4 else {}
            hidden = block(hidden, position_embeddings=positions, **extra)
            kept = hidden if index == 1 else kept
            if self.tie == "twice" and index == 2:
                hidden = block(hidden, position_embeddings=positions)
        return SimpleNamespace(logits=hidden)


def test_ties_that_only_a_forward_shows_are_refused():
    plain = Chain(None)
    assert require_separate_blocks(plain, plain.blocks) is None, "a chain of separate blocks was refused"
    refused(Chain("between"), r"Chain: blocks cannot be removed, what enters block 3 is not what block 2 returned")
    refused(Chain("beside"), r"Chain: blocks cannot be removed, block 4 also reads what block 1 made")
    refused(Chain("twice"), r"one forward ran 7 blocks, the model has 6")


def test_the_watch_draws_no_random_numbers_and_keeps_the_modes():
    model = build("gpt2", resid_pdrop=0.5).train()
    model.transformer.h[2].eval()
    modes, noise = [module.training for module in model.modules()], torch.get_rng_state()
    assert require_separate_blocks(model, find_blocks(model)) is None
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(noise, torch.get_rng_state()), "watching one token drew random numbers of the run's"


def test_a_model_is_watched_once_and_again_when_its_blocks_have_changed():
    model, forwards = build("llama"), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    for _ in range(3):
        with skip_blocks(model, [2]):
            pass
    assert len(forwards) == 1, "every entry sends a token through the model"
    remove_blocks(model, [2])
    with skip_blocks(model, [2]):
        pass
    assert len(forwards) == 2, "after a removal the blocks are others"
