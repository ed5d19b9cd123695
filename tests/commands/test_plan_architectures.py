"""Plans of other architectures: a model's own config, one alone, blocks of different sizes, routers' loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, MixtralConfig

from pipeline.commands.plan import plan
from pipeline.commands.plan_text import plan_text
from pipeline.config import load_config
from tests.commands.presets import PRESETS, preset
from tests.families import build


def test_a_local_model_is_planned_with_its_own_config(tiny_model: Path, tiny_config: Path) -> None:
    made = plan(load_config(tiny_config, [f"model.architecture={PRESETS / 'architecture'}"]))
    assert made["model"]["architecture"] == str(tiny_model / "config.json")
    # 2 norms, queries and outputs, keys and values of half the heads, 3 MLP matrices; both embeddings; the last norm.
    block = 2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160
    dense = 8 * block + 2 * 64000 + 64
    assert made["parameters"] == {"dense": dense, "pruned": dense - 2 * block, "trained": dense - 2 * block}


def test_an_architecture_alone_is_planned(tmp_path: Path) -> None:
    LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_hidden_layers=10,
        vocab_size=100,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    made = preset("2.7b", f"model.architecture={tmp_path}", "prune.remove=3")
    assert made["model"]["architecture"] == str(tmp_path / "config.json")
    # 2 norms, 4 square projections and 3 MLP matrices a block; the tied embedding once; the last norm.
    block = 2 * 64 + 4 * 64 * 64 + 3 * 64 * 128
    pruned = 7 * block + 6400 + 64
    assert made["parameters"] == {"dense": 10 * block + 6400 + 64, "pruned": pruned, "trained": pruned}


def test_blocks_of_different_sizes_are_said_to_be_bounds(tmp_path: Path) -> None:
    """DeepSeek's decoder: its first blocks are dense, the others mixtures of experts."""
    small = {
        "model_type": "deepseek_v3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 10,
        "first_k_dense_replace": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(small))
    made = preset("2.7b", f"model.architecture={tmp_path}", "prune.remove=3")
    assert made["blocks"]["uniform"] is False
    assert any("upper bounds" in note for note in made["notes"]), made["notes"]
    named = preset("2.7b", f"model.architecture={tmp_path}", "prune.blocks=[5, 6, 7]")
    assert not any("upper bounds" in note for note in named["notes"]), "named blocks leave nothing unknown"
    assert named["parameters"]["pruned"] < made["parameters"]["pruned"], "the larger blocks were named"


@pytest.mark.parametrize("asked", [True, False])
def test_a_plan_says_whether_the_routers_loss_is_trained_on(tiny_config, tmp_path, asked):
    MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        router_aux_loss_coef=0.5,
        output_router_logits=asked,
    ).save_pretrained(tmp_path)
    made = plan(load_config(tiny_config, ["model.path=owner/name", f"model.architecture={tmp_path}"]))
    notes = [note for note in made["notes"] if "auxiliary loss" in note]
    assert len(notes) == 1, made["notes"]
    assert ("added, with coefficient 0.5" in notes[0]) is asked
    assert ("is off: the model's config.json has output_router_logits false" in notes[0]) is not asked
    assert f"note: {notes[0]}" in plan_text(made)


@pytest.mark.parametrize(
    ("family", "asked", "blocks", "said"),
    [
        ("llama4", True, None, "Llama4ForCausalLM computes no auxiliary loss"),
        ("llama4", False, None, None),
        ("qwen3_moe", True, [0, 2, 3, 5], "no block with a router is left"),
        ("qwen3_moe", True, [0, 2, 3, 4], "auxiliary loss is added"),
    ],
)
def test_a_plan_promises_no_loss_that_nothing_computes(tiny_config, tmp_path, family, asked, blocks, said):
    build(family, output_router_logits=asked).config.save_pretrained(tmp_path)
    named = [f"prune.blocks={blocks}", "prune.remove=null"] if blocks else ["prune.remove=1"]
    made = plan(load_config(tiny_config, ["model.path=owner/name", f"model.architecture={tmp_path}", *named]))
    notes = [note for note in made["notes"] if "auxiliary loss" in note]
    assert [said in note for note in notes] == [True] if said else notes == [], notes
