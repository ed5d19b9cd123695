"""Frozen parameters are neither counted nor saved, whatever name they have."""

from __future__ import annotations

from pipeline.training.frozen import count_trained, leave_out_frozen
from tests.families import build


def test_a_model_of_which_all_is_trained_is_saved_whole():
    model = build("llama")
    assert count_trained(model) == model.num_parameters()
    assert not leave_out_frozen(model) and model.state_dict().keys() >= dict(model.named_parameters()).keys()


def test_a_frozen_weight_is_left_out_by_all_of_its_names():
    model = build("llama", tie_word_embeddings=True)
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= model.state_dict().keys(), "not tied: shows nothing"
    assert leave_out_frozen(model)
    assert list(model.state_dict()) == ["model.norm.weight"]
    assert count_trained(model) == model.model.norm.weight.numel()
