"""The self-test's instruments: what agrees passes with its figure, what does not is refused."""

from __future__ import annotations

import math

import pytest
import torch
from families import VOCABULARY, build

from pipeline.model.equivalence import CACHE_TOLERANCE, TOLERANCE, cached_logits, compare, full_logits, probe_ids
from pipeline.run import RegrowError


def test_the_probe_is_the_same_every_time():
    assert probe_ids(VOCABULARY).equal(probe_ids(VOCABULARY)) and probe_ids(VOCABULARY).shape == (2, 24)
    assert probe_ids(VOCABULARY).max() < VOCABULARY


def test_a_tampered_weight_is_seen():
    model, ids = build("llama"), probe_ids(VOCABULARY)
    whole, cached = full_logits(model, ids), cached_logits(model, ids)
    assert whole.shape == cached.shape == (2, 24, VOCABULARY)
    assert compare("cache", whole, cached, CACHE_TOLERANCE)["difference"] <= CACHE_TOLERANCE
    assert compare("twice", whole, full_logits(model, ids), 0) == {"check": "twice", "difference": 0, "tolerance": 0}
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[0, 0] += 1e-2
    tampered = full_logits(model, ids)
    with pytest.raises(RegrowError, match=r"self-test of pruning: tampered differ by \S+ of the largest logit"):
        compare("tampered", whole, tampered, TOLERANCE)


def test_logits_that_are_not_numbers_never_agree():
    good, bad = torch.ones(1, 2, 3), torch.full((1, 2, 3), math.nan)
    for one, other in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(RegrowError, match="differ by nan"):
            compare("NaN", one, other, CACHE_TOLERANCE)
