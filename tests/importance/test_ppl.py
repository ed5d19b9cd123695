"""The PPL criterion: what becomes of summed losses, and scoring without a run folder."""

from __future__ import annotations

import math

import pytest
import torch
from families import VOCABULARY, build

from pipeline.importance.ppl import score_blocks, summarise
from pipeline.importance.sweep import removal_losses
from pipeline.run import RegrowError


def test_the_criterion_is_the_perplexity_of_all_tokens():
    losses = torch.tensor([[20.0, 40.0], [10.0, 10.0], [30.0, 10.001], [5.0, 5.0]], dtype=torch.float64)
    entry = summarise(losses, targets=10, tie=1e-3)
    assert entry["scores"] == pytest.approx([math.exp(3), math.exp(1), math.exp(2.00005)])
    assert entry["dense"] == pytest.approx(math.exp(0.5)) and entry["order"] == [1, 2, 0]
    assert entry["near_ties"] == [] and summarise(losses, 10, 1.01)["near_ties"] == [[1, 2], [2, 0]]
    assert entry["sequence_losses"] == [[2, 4], [1, 1], [3, 1.0001]] and entry["dense_sequence_losses"] == [0.5, 0.5]


def test_scoring_from_a_notebook_does_not_depend_on_the_batches():
    model = build("llama")
    ids = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))
    whole, pieces = (score_blocks(model, batches)["ppl"] for batches in ([ids], [ids[:1], ids[1:]]))
    assert whole["scores"] == pytest.approx(pieces["scores"], rel=1e-6) and whole["order"] == pieces["order"]
    expected = (removal_losses(model, ids).sum(dim=1) / (4 * 15)).exp().tolist()
    assert [*whole["scores"], whole["dense"]] == pytest.approx(expected, rel=1e-9)
    with pytest.raises(RegrowError, match=r"one length is wanted, got \[15, 16\]"):
        score_blocks(model, [ids, ids[:, :15]])
    with pytest.raises(RegrowError, match="no batch"):
        score_blocks(model, [])
    with pytest.raises(RegrowError, match="taylor"):
        score_blocks(model, [ids], ["taylor"])
