"""The surgery in half precision: every family at a width that hides no rounding, and what becomes of mixed dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.model.surgery import prune_folder
from tests.families import FAMILIES, OTHERS, PUBLISHED, build

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
