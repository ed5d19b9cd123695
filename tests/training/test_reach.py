"""Which parameters text reaches, on real families: all of a language model, no vision tower, every expert."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from pipeline.training.reach import describe_unreached, probe, unreached
from tests.families import FAMILIES, OTHERS, build


def names(model: nn.Module) -> list[str]:
    return sorted(unreached(model, probe(model)))


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_text_reaches_all_of_a_language_model(family):
    model = build(family).train()
    random = torch.get_rng_state()
    assert names(model) == [], f"{family}: these would not be trained"
    assert torch.equal(random, torch.get_rng_state()), "the probe drew random numbers"
    assert model.training, "the probe left the model in evaluation mode"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_text_does_not_reach_a_vision_tower():
    text = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=39)
    model = Gemma3ForConditionalGeneration(config)
    outside = [name for name, _ in model.named_parameters() if "language_model" not in name and "lm_head" not in name]
    assert len(outside) > 20
    assert names(model) == sorted(outside)
    line = describe_unreached(unreached(model, probe(model)))
    count = sum(value.numel() for name, value in model.named_parameters() if name in outside)
    assert line.startswith(f"{count:,} parameters that text does not reach stay as they are: model.multi_modal_proj")
    assert "model.vision_tower" in line
    assert len(line) < 300, f"not a line but {line}"


class Experts(nn.Module):
    """A router of its own that sends every token to one expert, and a part that nothing calls."""

    def __init__(self, chosen: int):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.idle = nn.ModuleList([nn.Linear(32, 32)])
        self.chosen = chosen

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.experts[self.chosen](states)


def test_experts_of_a_block_are_reached_together_and_other_blocks_are_not():
    model = build("llama")
    for block in model.model.layers:
        block.mlp = Experts(chosen=1)
    idle = [f"model.layers.{block}.mlp.idle.0.{kind}" for block in range(6) for kind in ("bias", "weight")]
    assert names(model) == idle, "experts without a token were left out, or what nothing calls was kept"
    model.model.layers[2].forward = lambda states, *arguments, **named: states
    skipped = [name for name, _ in model.named_parameters() if name.startswith("model.layers.2.")]
    assert names(model) == sorted({*idle, *skipped}), "a block that does not run is taken for trained, by its likes"
