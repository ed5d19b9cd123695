"""New weights in a folder's shape: drawn by the seed as the family begins, and by nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import RegrowError
from pipeline.model.scratch import new_weights


def test_the_draw_is_the_seed_s(tiny_model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (new_weights(tiny_model, seed, dtype="float32").state_dict() for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before), "drawing weights moved the process's random state"
    assert all(value.equal(same[name]) for name, value in one.items()), "two draws of a seed differ"
    assert not one["lm_head.weight"].equal(other["lm_head.weight"]), "another seed gives the same weights"
    stored = load_file(tiny_model / "model.safetensors")
    assert not any(value.float().equal(one[name]) for name, value in stored.items() if "proj" in name)


def test_a_model_that_cannot_be_made(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 30, "num_attention_heads": 0}))
    with pytest.raises(RegrowError, match=str(folder)):
        new_weights(folder, 0)
