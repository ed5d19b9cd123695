"""Which parameters AdamW decays."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.training.optimisation import decay_groups


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
