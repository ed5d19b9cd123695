"""The self-test's instruments: what agrees passes with its figure, what does not is refused."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.model.blocks import skip_blocks
from pipeline.model.equivalence import (
    CACHE_TOLERANCE,
    LARGEST_CACHE_TOLERANCE,
    TOLERANCE,
    cache_tolerance,
    cached_logits,
    compare,
    full_logits,
    probe_ids,
)
from tests.families import VOCABULARY, build


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


@pytest.mark.parametrize(("family", "allowed"), [("llama", "plain"), ("minimax", "as the dense one"), ("phi3", "none")])
def test_a_cache_may_move_logits_as_far_as_the_dense_model_s_own_does_and_no_further(family, allowed):
    """MiniMax's tables as bf16 files hold them; and a Phi-3 whose frequencies change within the probe."""
    model, ids = build(family), probe_ids(VOCABULARY)
    if family == "minimax":
        model = model.bfloat16().float()
    if family == "phi3":
        factors = {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4, "original_max_position_embeddings": 16}
        rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
        model = build("phi3", head_dim=8, original_max_position_embeddings=16, rope_parameters=rope)
    with skip_blocks(model, [0, 3]):
        full, cached = full_logits(model, ids), cached_logits(model, ids)
    tolerance = cache_tolerance(model, ids, full, cached)
    if allowed == "plain":
        assert tolerance == CACHE_TOLERANCE
    elif allowed == "as the dense one":
        assert CACHE_TOLERANCE < tolerance < LARGEST_CACHE_TOLERANCE
        compare("with and without cache", full, cached, tolerance)
    else:
        assert tolerance == LARGEST_CACHE_TOLERANCE
        with pytest.raises(RegrowError, match="with and without cache differ"):
            compare("with and without cache", full, cached, tolerance)
