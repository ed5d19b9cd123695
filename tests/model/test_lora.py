"""Which layers get an adapter, and how large adapters are: against peft's own, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.model.costs import meta_model
from pipeline.model.lora import Lora, adapter_sizes, find_targets, kept_by_adapters
from pipeline.training.adapters import add_adapters
from pipeline.training.frozen import count_saved
from tests.families import build

LORA = Lora(4, 8.0, 0.05, ("q_proj", "k_proj", "down_proj"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_sizes_without_weights_are_those_of_peft_s_adapters(family):
    model = build(family)
    inside, outside = adapter_sizes(meta_model(model.config), LORA)
    add_adapters(model, LORA, seed=0)
    assert outside == 0 and len(inside) == model.config.num_hidden_layers
    assert sum(inside) == count_saved(model) > 0


def test_a_head_of_its_own_may_be_named():
    model = build("llama", tie_word_embeddings=False)
    lora = replace(LORA, targets=("lm_head",))
    head = model.get_output_embeddings()
    assert find_targets(model, lora.targets) == {"lm_head": head}
    assert adapter_sizes(model, lora) == ([0] * 6, 4 * (head.in_features + head.out_features))


@pytest.mark.parametrize(
    ("target", "tied", "said"),
    [
        ("c_attn", False, "c_attn is no linear layer of LlamaForCausalLM; take names from those that are: q_proj, "),
        ("lm_head", True, "lm_head is tied to the embedding"),
        ("embed_tokens", False, "embed_tokens is the embedding, a table"),
        ("input_layernorm", False, "input_layernorm is no linear layer"),
    ],
)
def test_what_can_have_no_adapter_is_refused_with_the_names_that_can(target, tied, said):
    with pytest.raises(RegrowError, match=r"train\.lora\.targets: ") as caught:
        find_targets(build("llama", tie_word_embeddings=tied), ("q_proj", target))
    assert said in str(caught.value) and "o_proj, gate_proj" in str(caught.value)


def test_what_adapters_keep_of_a_token_is_no_less_than_what_autograd_keeps():
    """Of a forward in training: the bytes with adapters, less those of the model that is trained whole."""
    seven = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    rows, length, lora = 2, 64, Lora(8, 16.0, 0.1, seven)
    kept: dict[bool, int] = {}
    for with_adapters in (False, True):
        model = build("llama").to(torch.bfloat16).train()
        expected = kept_by_adapters(model, lora, 2)
        if with_adapters:
            add_adapters(model, lora, seed=0)
        kept[with_adapters] = _kept(model, rows, length)
    blocks = model.config.num_hidden_layers
    found = (kept[True] - kept[False]) / (rows * length * blocks)
    assert 0.6 * expected < found <= expected, f"{found} bytes a token and block, {expected} were predicted"


def _kept(model: torch.nn.Module, rows: int, length: int) -> int:
    """Bytes of activations that autograd keeps of a forward, each storage once."""
    held: dict[int, int] = {}
    parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.zeros((rows, length), dtype=torch.int64), use_cache=False).logits.sum()
    return sum(held.values())
