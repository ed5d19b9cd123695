"""Small models with random weights of the families whose blocks differ in what they are given and what they return."""

from __future__ import annotations

from typing import Any

VOCABULARY = 200
BLOCKS = 6

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GATED = {**SHAPE, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"] * 2
NAMES = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}

#: family -> (class of its config, values)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**GATED}),
    "mistral": ("MistralConfig", {**GATED, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", {**GATED, "layer_types": SLIDING, "use_sliding_window": True, "sliding_window": 8}),
    "qwen3": ("Qwen3Config", {**GATED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    "gemma": ("GemmaConfig", {**GATED, "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": ("Gemma2Config", {**GATED, "layer_types": SLIDING, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {**GATED, "sliding_window": 8, "sliding_window_pattern": 3}),
    "phi3": ("Phi3Config", {**GATED, "sliding_window": 8}),
    "smollm3": ("SmolLM3Config", {**GATED, "no_rope_layer_interval": 3}),
    "olmo2": ("Olmo2Config", {**GATED}),
    "gpt2": ("GPT2Config", {**NAMES, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64}),
    "neox": ("GPTNeoXConfig", {**SHAPE, "intermediate_size": 64}),
    "opt": ("OPTConfig", {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "falcon": ("FalconConfig", {**SHAPE, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mixtral": ("MixtralConfig", {**GATED, "num_local_experts": 4}),
}

#: Variants of these, and families that no list names: their blocks are found by structure alone.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "neox_in_turn": ("GPTNeoXConfig", {**SHAPE, "intermediate_size": 64, "use_parallel_residual": False}),
    "opt_narrow": ("OPTConfig", {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon_rw": ("FalconConfig", {**SHAPE, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}),
    "bloom": ("BloomConfig", {**NAMES, "hidden_size": 32, "n_layer": BLOCKS, "n_head": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            **NAMES,
            "hidden_size": 32,
            "num_layers": BLOCKS,
            "num_heads": 4,
            "window_size": 8,
            "attention_types": [[["global", "local"], 3]],
            "max_position_embeddings": 64,
        },
    ),
    "gptj": ("GPTJConfig", {**NAMES, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    "mpt": ("MptConfig", {**NAMES, "d_model": 32, "n_layers": BLOCKS, "n_heads": 4, "max_seq_len": 64}),
    "cohere2": ("Cohere2Config", {**GATED, "sliding_window": 8, "sliding_window_pattern": 3}),
    "qwen2_moe": ("Qwen2MoeConfig", {**GATED, **EXPERTS, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    "qwen3_moe": ("Qwen3MoeConfig", {**GATED, **EXPERTS, "mlp_only_layers": [1, 4]}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **SHAPE,
            "intermediate_size": 64,
            "moe_intermediate_size": 16,
            "n_group": 2,
            "first_k_dense_replace": 3,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "topk_group": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "v_head_dim": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            **GATED,
            "intermediate_size_mlp": 64,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 3,
            "attention_chunk_size": 8,
        },
    ),
    "jamba": (
        "JambaConfig",
        {
            **GATED,
            "num_experts": 2,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_dt_rank": 4,
        },
    ),
    "lfm2": ("Lfm2Config", {**GATED, "full_attn_idxs": [2, 5]}),
    "minimax": ("MiniMaxConfig", {**GATED, "num_local_experts": 4, "block_size": 4}),
    "starcoder2": ("Starcoder2Config", {**GATED, "sliding_window": None}),
    "granite": ("GraniteConfig", {**GATED, "residual_multiplier": 0.5}),
    "gemma4": (
        "Gemma4TextConfig",
        {**GATED, "hidden_size_per_layer_input": 0, "layer_types": SLIDING, "sliding_window": 8},
    ),
}


#: Values that published configs of these families have, at ratios of their own: factors whose roots are not exact in
#: bf16, heads wider than the hidden state, scaled rotary tables.
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 48,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2": {"hidden_size": 56, "rope_parameters": YARN, "tie_word_embeddings": True},
    "gemma": {"hidden_size": 48, "num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {"hidden_size": 72, "head_dim": 16, "query_pre_attn_scalar": 14},
    "gemma3": {
        "hidden_size": 72,
        "head_dim": 16,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 10,
        "sliding_window_pattern": 6,
    },
    "phi3": {
        "hidden_size": 48,
        "head_dim": 12,
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 32,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7],
            "long_factor": [1.1, 1.5, 2.3, 4.1, 6.7, 9.3],
        },
    },
    "cohere2": {"hidden_size": 48, "logit_scale": 0.25},
    "granite": {
        "hidden_size": 48,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.0078125,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "deepseek_v3": {"hidden_size": 56, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "gemma4": {"hidden_size": 48, "num_key_value_heads": 1},
    "minimax": {"hidden_size": 48},
    "llama4": {"hidden_size": 48},
}

#: Multimodal wrappers around these: family -> (class of the config, values, of the text part, of the vision tower).
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48}
NARROW = {**GATED, "hidden_size": 48}
MULTIMODAL: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "Gemma3Config",
        {"mm_tokens_per_image": 4, "image_token_index": 199},
        {**NARROW, "sliding_window": 8},
        VISION,
    ),
    "mistral3": (
        "Mistral3Config",
        {"image_token_index": 199, "tie_word_embeddings": False},
        {**NARROW, "model_type": "mistral"},
        {**VISION, "model_type": "pixtral", "head_dim": 16},
    ),
    "ministral3": (
        "Mistral3Config",
        {"image_token_index": 199, "tie_word_embeddings": True},
        {**NARROW, "model_type": "ministral3", "tie_word_embeddings": True},
        {**VISION, "model_type": "pixtral", "head_dim": 16},
    ),
    "llama4": (
        "Llama4Config",
        {},
        {**NARROW, "intermediate_size_mlp": 64, "num_local_experts": 4},
        {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    ),
    "qwen3_5": (
        "Qwen3_5Config",
        {},
        {
            **NARROW,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        QWEN_VISION,
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeConfig",
        {},
        {
            **NARROW,
            **EXPERTS,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        QWEN_VISION,
    ),
}


def build(family: str, *, spread: float = 0.2, seed: int = 0, **changes: Any) -> Any:
    """A model whose blocks matter, in fp32 and evaluation mode; ``changes`` to the family's values.

    Weights are normal and seeded, of standard deviation ``spread``; norms and biases too, around one. One thread is its
    best.
    """
    import transformers

    name, values = {**FAMILIES, **OTHERS}[family]
    config = getattr(transformers, name)(**{**values, **changes})
    config.initializer_range = spread
    return _seeded(transformers.AutoModelForCausalLM, config, seed)


def build_multimodal(family: str) -> Any:
    """The same of a wrapper, with its vision tower."""
    import transformers

    name, values, text, vision = MULTIMODAL[family]
    config = getattr(transformers, name)(**values, text_config=dict(text), vision_config=dict(vision))
    config.get_text_config().initializer_range = 0.2
    return _seeded(transformers.AutoModelForImageTextToText, config)


def _seeded(loader: Any, config: Any, seed: int = 0) -> Any:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = loader.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases, which start as ones and zeros
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model
