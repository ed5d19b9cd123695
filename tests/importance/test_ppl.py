"""The PPL criterion: what becomes of summed losses, and that it is what Shortened LLM computes."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.ppl import perplexity_without, summarise, windows_of
from pipeline.model.blocks import remove_blocks
from pipeline.model.loss import next_token_losses
from tests.families import VOCABULARY, build


def text(rows: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, 16), generator=torch.Generator().manual_seed(0))


def test_the_criterion_is_the_perplexity_of_all_tokens():
    losses = torch.tensor([[20.0, 40.0], [10.0, 10.0], [30.0, 10.001], [5.0, 5.0]], dtype=torch.float64)
    entry = summarise(losses, targets=10, tie=1e-3)
    assert entry["scores"] == pytest.approx([math.exp(3), math.exp(1), math.exp(2.00005)])
    assert entry["dense"] == pytest.approx(math.exp(0.5)) and entry["order"] == [1, 2, 0]
    assert entry["near_ties"] == [] and summarise(losses, 10, 1.01)["near_ties"] == [[1, 2], [2, 0]]
    assert entry["sequence_losses"] == [[2, 4], [1, 1], [3, 1.0001]] and entry["dense_sequence_losses"] == [0.5, 0.5]


def test_windows_stand_by_length_and_start():
    losses = torch.tensor([[20.0], [10.0], [30.0], [40.0], [25.0], [5.0]], dtype=torch.float64)
    entry = summarise(losses, 10, 1e-3, windows=windows_of(3, [2]))
    assert windows_of(3, [2, 1]) == [(0, 2), (1, 2), (0, 1), (1, 1), (2, 1)]
    assert entry["windows"]["2"]["scores"] == pytest.approx([math.exp(4), math.exp(2.5)])
    assert entry["windows"]["2"]["best_start"] == 1
    # Nothing else of the entry knows of them.
    plain = summarise(losses[[0, 1, 2, 5]], 10, 1e-3)
    assert {key: value for key, value in entry.items() if key != "windows"} == plain


def test_a_perplexity_without_blocks_is_that_of_the_model_that_lost_them():
    model, ids = build("qwen2"), text(5)
    found = perplexity_without(model, ids.split(2), [1, 4])
    remove_blocks(model, [1, 4])
    with torch.no_grad():
        losses = next_token_losses(model(ids, use_cache=False).logits, ids)
    assert found == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    with pytest.raises(RegrowError, match="no batch"):
        perplexity_without(model, [], [])
