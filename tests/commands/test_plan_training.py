"""What a plan says of adapters, of a teacher and of what is done before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.plan_text import plan_text
from pipeline.commands.plan_training import planned_teacher
from pipeline.config import load_config
from pipeline.errors import RegrowError
from tests.commands.presets import PRESETS, preset
from tests.families import build

#: A forward of Vicuna-7B for a token of rows of 2,048: 2 x (parameters - 32000 x 4096) + 4 x 32 x 4096 x 2048.
FORWARD = 2 * (6738415616 - 32000 * 4096) + 4 * 32 * 4096 * 2048


def test_a_teacher_that_is_asked_ahead_is_planned_with_its_disk_and_beside_nobody() -> None:
    asked = ("train.objective=distill", "train.distill.samples=50", "train.distill.store=answers")
    made = preset("2.7b", *asked)
    (note,) = [note for note in made["notes"] if "train.distill.samples 50" in note]
    # 50 ** 0.72 ids of two bytes, their counts, and three bytes a token.
    tokens = made["training"]["steps"] * made["training"]["tokens_per_step"]
    assert "53 bytes a token" in note and f"{(50**0.72 * 3 + 3) * tokens / 1e9:.2f} GB in answers" in note, note
    assert f"takes {FORWARD:.4g} FLOPs a token, {FORWARD * tokens:.4g} in all" in note, note
    assert made["flops"] == preset("2.7b")["flops"], "training takes none of the teacher"
    assert not any("of weights" in note or "whose weights take" in note for note in made["notes"])


def test_a_teacher_beside_training_is_counted_with_it() -> None:
    made = preset("2.7b", "train.objective=distill")
    assert made["flops"]["per_token"] == preset("2.7b")["flops"]["per_token"] + FORWARD
    (note,) = [note for note in made["notes"] if "the teacher's, whose weights take 13.5 GB" in note]
    assert f"of a token's FLOPs {FORWARD:.4g}" in note


def test_the_dense_teacher_is_the_first_dense_model(tiny_model: Path, tmp_path: Path) -> None:
    """Of a run that begins with another one, whose shape would be another figure."""
    build("llama").config.save_pretrained(tmp_path)

    def found(*overrides: str) -> Path | None:
        config = load_config(PRESETS / "2.7b.yaml", ["train.objective=distill", *overrides])
        return planned_teacher(config, tiny_model)

    assert (found(f"model.dense={tmp_path}"), found()) == (tmp_path, tiny_model)
    assert found("model.dense=nobody/nothing") is None is found("model.dense=/nowhere/at/all")
    made = preset("2.7b", "train.objective=distill", "model.dense=nobody/nothing")
    assert made["flops"] == preset("2.7b")["flops"]
    assert any("distill: the teacher is not here, and nothing of it" in note for note in made["notes"]), made["notes"]


def test_healing_is_planned_with_its_text_and_the_host_s_memory() -> None:
    made = preset("2.7b", "train.heal=local")
    (note,) = [note for note in made["notes"] if "train.heal" in note]
    # 512 sequences of 128 tokens, an eighth of them in each process; two fp32 states of 4,096 values.
    states = 2 * 4 * 4096 * 512 * 128 // 8
    weights = 2 * (6738415616 + 2690748416)
    for part in (
        "both models read 65,536 tokens",
        f"each process takes {weights / 1e9:.2f} GB for their weights",
        f"{states / 1e6:.2f} MB for their states",
    ):
        assert part in note, note
    assert not any("train.heal" in note for note in preset("2.7b")["notes"])


def test_adapters_alone_are_trained_which_all_figures_know() -> None:
    """On paper: 8 x (inputs + outputs) of seven layers in 26 blocks; 4 FLOPs for what is frozen, 6 for adapters."""
    full, made = (preset("5.5b", "train.micro_batch=1", f"train.method={method}") for method in ("full", "lora"))
    adapters = 26 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert made["parameters"] == {**full["parameters"], "trained": adapters, "adapters": adapters}
    products = 5524115456 - 32000 * 4096
    assert made["flops"]["per_token"] == 4 * products + 6 * adapters + 12 * 26 * 4096 * 2048
    for stage, (row, whole) in enumerate(zip(made["memory"], full["memory"], strict=True)):
        assert row["optimizer"] == (8 if stage == 0 else 12) * adapters // (1 if stage == 0 else 8)
        assert row["gradients"] < whole["gradients"] / 100 and row["loss"] < whole["loss"]
    assert made["memory"][1]["weights"] == 2 * (5524115456 + adapters)
    text = plan_text(made)
    assert f"trained      {adapters:,} of adapters (LoRA)" in text and "palm: 4 N + 6 A + 12 L d T" in text


def test_an_adapter_for_a_layer_that_the_model_lacks_is_refused_before_anything_begins() -> None:
    with pytest.raises(RegrowError, match=r"train\.lora\.targets: c_attn is no linear layer of LlamaForCausalLM"):
        preset("5.5b", "train.method=lora", "train.lora.targets=[c_attn]")
