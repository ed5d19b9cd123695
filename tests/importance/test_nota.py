"""Removal losses, Taylor and magnitude scores against Shortened LLM's way of computing them, on SmolLM2-135M.

Its scripts are github.com/Nota-NetsPresso/shortened-llm at 4031a92. What stands here is their method, written anew and
plainly: for each block a model of one block fewer is built from a config and filled from the state dict under renamed
keys; gradients come from ``loss.backward()``. Everything is in fp32. The scripts' ten sequences of 128 tokens, for all
30 blocks, take minutes: the ordinary suite has a part of them.
"""

from __future__ import annotations

import re
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from pipeline.data.formats.documents import read_documents
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.importance.ppl import summarise
from pipeline.importance.sweep import removal_losses
from pipeline.importance.weights import magnitude_entry, taylor_entry
from pipeline.model.blocks import find_blocks
from pipeline.model.load import load_model
from tests.families import BLOCKS, VOCABULARY, build

#: The weights of a Llama block that are scored.
SCORED = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)


@pytest.fixture(scope="module")
def smollm2(demo: Path) -> Any:
    """SmolLM2-135M in fp32."""
    torch.set_num_threads(1)
    return load_model(demo / "model", dtype="float32", attention="sdpa")


@pytest.fixture(scope="module")
def ids(demo: Path) -> torch.Tensor:
    """The first 128 tokens of ten documents that have as many."""
    shard = demo / "text" / "train" / "chunk1" / "example_train_0.jsonl.zst"
    encode = make_encoder(load_tokenizer(demo / "model"))
    rows = (encode(text)[:128] for _, text in read_documents(shard, "jsonl"))
    return torch.tensor(list(islice((row for row in rows if len(row) == 128), 10)))


def without_block(model: Any, removed: int) -> Any:
    """A model of one block fewer, made from a config; the others' weights are copied under their new places' names."""
    config = deepcopy(model.config)
    config.num_hidden_layers -= 1
    if getattr(config, "layer_types", None):
        del config.layer_types[removed]
    weights = {}
    for name, value in model.state_dict().items():
        found = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        if found is None:
            weights[name] = value
        elif int(found[1]) != removed:
            weights[f"model.layers.{int(found[1]) - (int(found[1]) > removed)}.{found[2]}"] = value
    with no_init_weights():  # every weight is loaded in the next line
        smaller = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    smaller.load_state_dict(weights)
    return smaller.eval()


@torch.no_grad()
def token_losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The losses (sequences, tokens - 1) of one sequence after another."""
    rows = (F.cross_entropy(model(row[None]).logits[0, :-1].float(), row[1:], reduction="none") for row in ids)
    return torch.stack(list(rows))


def check_removals(model: Any, ids: torch.Tensor, blocks: list[int]) -> None:
    """The sweep's losses and perplexities, without each of these blocks and dense, are those of models built so."""
    swept = torch.cat([removal_losses(model, row[None], blocks=blocks) for row in ids], dim=1)
    entry = summarise(swept, targets=ids.shape[1] - 1, tie=1e-5)
    found = [*entry["scores"], entry["dense"]]
    losses = [token_losses(without_block(model, block), ids) for block in blocks] + [token_losses(model, ids)]
    for place, name in enumerate([*map(str, blocks), "none"]):
        expected = losses[place].double()
        assert swept[place].tolist() == pytest.approx(expected.sum(dim=1).tolist(), rel=1e-3), f"losses without {name}"
        assert found[place] == pytest.approx(expected.mean().exp().item(), rel=1e-3), f"perplexity without {name}"
    rises = torch.tensor(found[:-1]) / found[-1]
    assert (rises > 1.01).all(), f"a block costs nothing: {rises.tolist()}"


def check_weight_scores(model: Any, ids: torch.Tensor) -> None:
    """Taylor and magnitude, entry by entry and block by block, are those of one backward pass and plain sums."""
    ours = taylor_entry(model, ids.split(2))
    logits = model(ids).logits[:, :-1].float()
    F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).backward()
    tensors = dict(model.named_parameters())
    for name, entry in (("taylor", ours), ("magnitude", magnitude_entry(find_blocks(model)))):
        for block, (score, details) in enumerate(zip(entry["scores"], entry["weight_scores"], strict=True)):
            expected = {}
            for weight in SCORED:
                values = tensors[f"model.layers.{block}.{weight}.weight"]
                salience = values * values.grad if name == "taylor" else values
                expected[f"{weight}.weight"] = salience.detach().abs().double().sum().item()
            assert details == pytest.approx(expected, rel=1e-3), f"{name}, block {block}"
            assert score == pytest.approx(sum(expected.values()), rel=1e-3), f"{name}, block {block}"
    model.zero_grad()


def test_on_a_small_model_all_of_it():
    model, short = build("llama"), torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))
    swept = removal_losses(model, short)
    for block in range(BLOCKS):
        expected = token_losses(without_block(model, block), short).double().sum(dim=1)
        assert swept[block].tolist() == pytest.approx(expected.tolist(), rel=1e-5), f"without block {block}"
    check_weight_scores(model, short)


def test_smollm2_without_some_blocks(smollm2, ids):
    check_removals(smollm2, ids[:3, :32], [0, 9, 20, 29])


def test_taylor_and_magnitude_of_smollm2_on_short_sequences(smollm2, ids):
    check_weight_scores(smollm2, ids[:3, :32])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_smollm2_without_each_block_on_ten_sequences(smollm2, ids):
    assert ids.shape == (10, 128) and smollm2.config.num_hidden_layers == 30
    check_removals(smollm2, ids, list(range(30)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_taylor_and_magnitude_of_smollm2_on_ten_sequences(smollm2, ids):
    check_weight_scores(smollm2, ids)
