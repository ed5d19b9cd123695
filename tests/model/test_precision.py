"""A model's own values in fp32, and its own dtypes again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.model.equivalence import full_logits, probe_ids
from pipeline.model.load import load_model
from pipeline.model.precision import narrow, stored_dtypes, widen
from tests.families import PUBLISHED, VOCABULARY, build


def saved(model: torch.nn.Module, folder: Path) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3", "gemma4", "llama", "phi3"])
def test_widened_is_what_fp32_loads_and_narrowed_is_what_was_there(family, tmp_path):
    folder = saved(build(family, **PUBLISHED[family]), tmp_path)
    model, exact = load_model(folder), load_model(folder, dtype="float32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stored = stored_dtypes(model)
    widen(model, folder)
    other = dict(exact.named_buffers())
    differing = [name for name, buffer in model.named_buffers() if not buffer.equal(other[name])]
    assert not differing, f"these buffers are not those of the model in fp32: {differing}"
    ids = probe_ids(VOCABULARY)
    assert full_logits(model, ids).equal(full_logits(exact, ids))
    if family.startswith("gemma"):
        rounded = load_model(folder).float()
        assert not full_logits(rounded, ids).equal(full_logits(exact, ids)), "this width hides the rounding"
    narrow(stored)
    after = model.state_dict()
    changed = {name for name, value in before.items() if value.dtype != after[name].dtype}
    changed |= {name for name, value in before.items() if not value.equal(after[name])}
    assert not changed, f"narrowed again, these are others: {sorted(changed)}"
