"""Frozen parameters are neither counted nor saved where they were left out, whatever name they have."""

from __future__ import annotations

from pipeline.training.frozen import count_saved, leave_out_frozen, left_out
from tests.families import build


def test_a_model_of_which_nothing_was_left_out_is_saved_whole():
    model = build("llama")
    model.model.norm.weight.requires_grad_(False)
    assert count_saved(model) == model.num_parameters() and not left_out(model)
    assert model.state_dict().keys() >= dict(model.named_parameters()).keys()


def test_a_frozen_weight_is_left_out_by_all_of_its_names():
    model = build("llama", tie_word_embeddings=True)
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= model.state_dict().keys(), "not tied: shows nothing"
    leave_out_frozen(model)
    assert list(model.state_dict()) == ["model.norm.weight"]
    assert count_saved(model) == model.model.norm.weight.numel()
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= left_out(model)
