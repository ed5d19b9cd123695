"""What a config says of single blocks follows the kept ones; what it cannot say of them is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks, remove_blocks, require_removable, skip_blocks
from pipeline.model.depth import config_values, per_block_lists
from pipeline.model.equivalence import cached_logits, full_logits, probe_ids
from pipeline.model.load import load_model
from tests.families import BLOCKS, SLIDING, VOCABULARY, build, build_multimodal

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def classes(model: Any) -> list[str]:
    return [type(block.mlp).__name__ for block in find_blocks(model)]


def test_a_list_of_the_config_keeps_the_entries_of_the_kept_blocks():
    qwen = remove_blocks(build("qwen2"), [0, 2, 3])
    assert qwen.config.layer_types == [SLIDING[1], SLIDING[4], SLIDING[5]]
    assert [block.self_attn.sliding_window for block in find_blocks(qwen)] == [8, 8, None]
    smol = build("smollm3")
    assert set(per_block_lists(smol.config, BLOCKS)) == {"no_rope_layers", "layer_types"}
    assert remove_blocks(smol, [0, 1]).config.no_rope_layers == [0, 1, 1, 0]
    # Lists that have that length by accident are no lists of blocks.
    two = LlamaConfig(num_hidden_layers=2, eos_token_id=[1, 2], architectures=["A", "B"])
    assert per_block_lists(two, 2) == {}, "a list that is not about blocks would be cut"


def test_what_a_period_or_a_count_gave_a_block_stays_its_own(tmp_path):
    """Gemma 3's sixth blocks are global, Qwen's blocks from the third on are local: in the dense model's numbers."""
    gemma = remove_blocks(build("gemma3"), [0, 1])
    assert gemma.config.layer_types == [GLOBAL, LOCAL, LOCAL, GLOBAL], "the period was counted anew"
    assert [block.self_attn.is_sliding for block in find_blocks(gemma)] == [False, True, True, False]
    qwen = remove_blocks(build("qwen3"), [1, 4])
    assert qwen.config.layer_types == [GLOBAL, GLOBAL, LOCAL, LOCAL] and qwen.config.max_window_layers == 2
    neo = remove_blocks(build("gpt_neo"), [0, 3, 4])
    assert neo.config.attention_layers == ["local", "global", "local"]
    neo.config.save_pretrained(tmp_path)
    assert type(neo.config).from_pretrained(tmp_path).attention_layers == ["local", "global", "local"]


def test_lists_of_indices_leading_counts_and_steps_are_counted_in_the_new_blocks():
    dense, experts = "Qwen2MoeMLP", "Qwen2MoeSparseMoeBlock"
    model = build("qwen2_moe", mlp_only_layers=[3, 4])  # every second has experts, but for the fourth
    assert classes(model) == [dense, experts, dense, dense, dense, experts]
    remove_blocks(model, [0, 4])
    assert classes(model) == [experts, dense, dense, experts]
    assert (model.config.decoder_sparse_step, model.config.mlp_only_layers) == (1, [1, 2])
    qwen = remove_blocks(build("qwen3_moe"), [0, 4])
    assert qwen.config.mlp_only_layers == [0]
    deepseek = remove_blocks(build("deepseek_v3"), [1, 5])
    assert deepseek.config.first_k_dense_replace == 2
    assert classes(deepseek) == ["DeepseekV3MLP"] * 2 + ["DeepseekV3MoE"] * 2
    # As many indices as blocks: still no list of entries.
    llama4 = build("llama4", interleave_moe_layer_step=1).config
    assert llama4.moe_layers == list(range(6)) and config_values(llama4, [3, 5], 6)["moe_layers"] == [0, 1]


@pytest.mark.parametrize("removed", [[2, 5], [0, 1, 3, 4]])
def test_all_blocks_of_one_attention_type_may_go(removed, tmp_path):
    dense, ids = build("gemma3"), probe_ids(VOCABULARY)
    with skip_blocks(dense, removed):
        skipped = full_logits(dense, ids)
    remove_blocks(dense, removed).save_pretrained(tmp_path)
    reloaded = load_model(tmp_path, dtype="float32")
    assert full_logits(dense, ids).equal(skipped) and full_logits(reloaded, ids).equal(skipped)
    assert cached_logits(reloaded, ids).equal(cached_logits(dense, ids))


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5"])
def test_a_hybrid_keeps_a_block_of_attention_by_which_its_cache_counts(family):
    """Without one transformers' cache fails at the second token; MiniMax's own does not."""
    model = build_multimodal(family) if family == "qwen3_5" else build(family)
    types = model.config.get_text_config().layer_types
    attention = [index for index, kind in enumerate(types) if kind == "full_attention"]
    words = rf"these blocks cannot be removed, no attention.*could not generate.*\({attention[0]}.* would go\)"
    for refuse in (require_removable, remove_blocks):
        with pytest.raises(RegrowError, match=words):
            refuse(model, attention)
    assert len(find_blocks(model)) == len(types), "a refused removal changed the model"
    others = [index for index in range(len(types)) if index not in attention[:1]]
    remove_blocks(model, others)
    assert cached_logits(model, probe_ids(VOCABULARY)).isfinite().all(), "the last block of attention is enough"
    minimax = build("minimax")
    remove_blocks(minimax, [0, 2, 4])
    assert set(minimax.config.layer_types) == {"linear_attention"}
    assert cached_logits(minimax, probe_ids(VOCABULARY)).isfinite().all()


class PeriodConfig(LlamaConfig):
    """A config that knows windows as a period alone."""

    model_type = "period"
    window_every: int = 3


class PeriodForCausalLM(LlamaForCausalLM):
    config_class = PeriodConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for index, block in enumerate(self.model.layers):
            block.local = bool((index + 1) % config.window_every)


def test_what_only_a_period_says_is_refused_unless_it_still_holds():
    model = PeriodForCausalLM(PeriodConfig(**build("llama").config.to_dict())).eval()
    words = r"PeriodForCausalLM: these blocks cannot be removed.*block 2: local False would become True; block 3"
    with pytest.raises(RegrowError, match=words):
        remove_blocks(model, [1])
    assert (len(find_blocks(model)), model.config.num_hidden_layers) == (6, 6), "a refused removal changed the model"
    remove_blocks(model, [3, 4, 5])  # a whole period goes, and what is left is what the config says
    assert [block.local for block in find_blocks(model)] == [True, True, False]


def test_weights_and_scales_that_depend_on_a_block_s_place_are_refused():
    scaled = build("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RegrowError, match=r"GPT2LMHeadModel.*block 3: attn\.scaling 0\.08\S+ would become 0\.11"):
        remove_blocks(scaled, [2])
    remove_blocks(scaled, [5])  # the places of the others stay
    assert len(find_blocks(scaled)) == 5

    class WithTable(GPT2LMHeadModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.per_block = type(self.lm_head)(8, config.num_hidden_layers)

    with pytest.raises(RegrowError, match=r"per_block\.weight of shape \(6, 8\) would become of shape \(5, 8\)"):
        remove_blocks(WithTable(build("gpt2").config).eval(), [5])


def test_a_model_that_its_config_cannot_build_is_refused():
    class Wrapped(LlamaForCausalLM):
        def __init__(self, config: Any, inner: Any) -> None:
            super().__init__(config)

    with pytest.raises(RegrowError, match=r"Wrapped: blocks cannot be removed, it cannot be built from its config"):
        remove_blocks(Wrapped(build("llama").config, None).eval(), [1])
