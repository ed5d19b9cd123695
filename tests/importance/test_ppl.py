"""The PPL criterion: what becomes of summed losses, and that it is what Shortened LLM computes."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from families import BLOCKS, VOCABULARY, build

from pipeline.data.documents import read_documents
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.importance.ppl import perplexity_without, summarise
from pipeline.importance.sweep import removal_losses
from pipeline.model.blocks import remove_blocks
from pipeline.model.load import load_model
from pipeline.model.loss import next_token_losses
from pipeline.run import RegrowError


def text(rows: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, 16), generator=torch.Generator().manual_seed(0))


def test_the_criterion_is_the_perplexity_of_all_tokens():
    losses = torch.tensor([[20.0, 40.0], [10.0, 10.0], [30.0, 10.001], [5.0, 5.0]], dtype=torch.float64)
    entry = summarise(losses, targets=10, tie=1e-3)
    assert entry["scores"] == pytest.approx([math.exp(3), math.exp(1), math.exp(2.00005)])
    assert entry["dense"] == pytest.approx(math.exp(0.5)) and entry["order"] == [1, 2, 0]
    assert entry["near_ties"] == [] and summarise(losses, 10, 1.01)["near_ties"] == [[1, 2], [2, 0]]
    assert entry["sequence_losses"] == [[2, 4], [1, 1], [3, 1.0001]] and entry["dense_sequence_losses"] == [0.5, 0.5]


@torch.no_grad()
def by_notas_method(model, ids):
    """What Shortened LLM's script does for each block: a model of one block fewer from a config, the weights copied
    under renamed keys, and exp of the mean loss. Returns one perplexity for each block and the dense one."""

    def perplexity(candidate):
        losses = [
            F.cross_entropy(candidate(row[None]).logits[0, :-1].float(), row[1:], reduction="none") for row in ids
        ]
        return torch.cat(losses).mean().exp().item()

    total = model.config.num_hidden_layers
    found = []
    for removed in range(total):
        config = deepcopy(model.config)
        config.num_hidden_layers -= 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:removed] + config.layer_types[removed + 1 :]
        weights = {}
        for name, value in model.state_dict().items():
            place = int(name.split(".")[2]) if name.startswith("model.layers.") else -1
            if place != removed:
                shifted = name.replace(f"layers.{place}.", f"layers.{place - 1}.") if place > removed else name
                weights[shifted] = value
        candidate = type(model)._from_config(config).eval()
        candidate.load_state_dict(weights)
        found.append(perplexity(candidate))
    return found, perplexity(model)


def test_the_scores_are_those_of_notas_method():
    model, ids = build("llama"), text(4)
    losses = removal_losses(model, ids)
    entry = summarise(losses, targets=15, tie=1e-5)
    expected, dense = by_notas_method(model, ids)
    assert entry["scores"] == pytest.approx(expected, rel=1e-3) and entry["dense"] == pytest.approx(dense, rel=1e-3)
    assert entry["order"] == sorted(range(BLOCKS), key=expected.__getitem__)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_scores_of_smollm2_are_those_of_notas_method(demo):
    model = load_model(demo / "model", dtype="float32")
    shard = demo / "text" / "train" / "chunk1" / "example_train_0.jsonl.zst"
    encode = make_encoder(load_tokenizer(demo / "model"))
    rows = (encode(text)[:128] for _, text in read_documents(shard, "jsonl"))
    ids = torch.tensor([row for row in islice(rows, 60) if len(row) == 128][:10])
    assert ids.shape == (10, 128)
    entry = summarise(torch.cat([removal_losses(model, row[None]) for row in ids], dim=1), targets=127, tie=1e-5)
    expected, dense = by_notas_method(model, ids)
    assert entry["scores"] == pytest.approx(expected, rel=1e-3) and entry["dense"] == pytest.approx(dense, rel=1e-3)


def test_a_perplexity_without_blocks_is_that_of_the_model_that_lost_them():
    model, ids = build("qwen2"), text(5)
    found = perplexity_without(model, ids.split(2), [1, 4])
    remove_blocks(model, [1, 4])
    with torch.no_grad():
        losses = next_token_losses(model(ids, use_cache=False).logits, ids)
    assert found == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    with pytest.raises(RegrowError, match="no batch"):
        perplexity_without(model, [], [])
