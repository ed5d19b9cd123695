"""The surgery in half precision: every family at a width that hides no rounding, and what becomes of mixed dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.model.equivalence import full_logits, probe_ids
from pipeline.model.headers import shortfall
from pipeline.model.load import load_model
from pipeline.model.precision import narrow, stored_dtypes, widen
from pipeline.model.surgery import prune_folder
from tests.families import FAMILIES, OTHERS, PUBLISHED, VOCABULARY, build

#: No square root of these is exact in bf16, and so no factor of a Gemma on its embeddings.
WIDTHS = {"hidden_size": 48, "n_embd": 48, "d_model": 48}
REFUSED = {"jamba"}
CASES = [
    *(pytest.param(family, changes, id=family) for family, changes in PUBLISHED.items()),
    *(
        pytest.param(
            family, {name: width for name, width in WIDTHS.items() if name in values}, id=family, marks=pytest.mark.slow
        )
        for family, (_, values) in {**FAMILIES, **OTHERS}.items()
        if family not in PUBLISHED and family not in REFUSED and "word_embed_proj_dim" not in values
    ),
]


def saved(model: torch.nn.Module, folder: Path) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_skipped_is_removed_is_reloaded_in_bf16(family, changes, tmp_path):
    dense = saved(build(family, **changes), tmp_path / "dense")
    lines: list[str] = []
    record = prune_folder(dense, tmp_path / "model", [0, 3], {}, dtype="bfloat16", say=lines.append)
    checks = record["self_test"]["checks"]
    assert [check["difference"] for check in checks[2:4]] == [0, 0], checks
    # MiniMax's files hold rounded tables of decay, and the dense model's own cache moves its logits by as much.
    assert (checks[4]["tolerance"] > 1e-3) == (family == "minimax"), checks
    assert (record["narrowed"], record["left_out"]) == ({}, [])
    assert all(line.startswith("self-test: ") for line in lines), lines
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} <= {torch.bfloat16, torch.float32}


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


def test_what_transformers_keeps_in_fp32_is_saved_in_fp32(tmp_path):
    """DeepSeek V3 keeps the bias of its routers in fp32 whatever the rest is loaded in."""
    model = build("deepseek_v3").to(torch.bfloat16)
    biases = {}
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            biases[name] = torch.linspace(0.1, 0.9, buffer.numel())
    model.save_pretrained(tmp_path / "dense")
    weights = load_file(tmp_path / "dense" / "model.safetensors") | biases
    save_file(weights, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    record = prune_folder(tmp_path / "dense", tmp_path / "model", [0, 4], {}, dtype="bfloat16", say=lambda line: None)
    after = load_file(tmp_path / "model" / "model.safetensors")
    kept = {name: value for name, value in after.items() if name.endswith("e_score_correction_bias")}
    assert len(biases) == 3 and len(kept) == 2 and record["narrowed"] == {}
    assert all(value.equal(torch.linspace(0.1, 0.9, 4)) for value in kept.values()), "the routers' bias was rounded"


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_what_the_run_s_dtype_narrows_is_named(form, tmp_path):
    """A Mixtral in bf16 whose routers are in fp32, under the names that its checkpoints have."""
    dense = saved(build("mixtral"), tmp_path / "dense")
    weights = load_file(dense / "model.safetensors")
    routers = sorted(name for name in weights if name.endswith("gate.weight"))
    weights |= {name: weights[name].float() * 1.0001 for name in routers}
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    if form == "bin":
        (dense / "model.safetensors").unlink()
        torch.save(weights, dense / "pytorch_model.bin")
    lines: list[str] = []
    record = prune_folder(dense, tmp_path / "model", [0, 3], {}, dtype="bfloat16", say=lines.append)
    assert len(routers) == 6 and record["narrowed"] == dict.fromkeys(routers, "float32")
    assert lines[0] == (
        f"model.dtype bfloat16 narrows 6 of the {len(weights)} tensors in dense: {', '.join(routers[:3])}, ..."
    )
    assert shortfall(load_model(dense, dtype="float32"), dense).narrowed == {}, "fp32 holds all of it"
    half = shortfall(load_model(dense, dtype="float16"), dense).narrowed
    assert set(half.values()) == {torch.bfloat16, torch.float32}, "fp16 cannot hold every number of bf16"


def test_what_the_model_has_no_place_for_is_named(tmp_path):
    """DeepSeek V3's files hold a head for further tokens, which transformers leaves out."""
    dense = saved(build("deepseek_v3"), tmp_path / "dense")
    weights = load_file(dense / "model.safetensors")
    extra = {
        "model.layers.61.eh_proj.weight": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    save_file(weights | extra, dense / "model.safetensors", metadata={"format": "pt"})
    lines: list[str] = []
    record = prune_folder(dense, tmp_path / "model", [0, 4], {}, dtype="bfloat16", say=lines.append)
    assert record["left_out"] == ["model.layers.61.eh_proj.weight"], "a table that is computed now is not missed"
    assert lines[0].startswith("the text model leaves out 1 of the ")
