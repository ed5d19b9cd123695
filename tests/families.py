"""Small models with random weights of the families whose blocks differ in what they are given and what they return."""

from __future__ import annotations

from typing import Any

VOCABULARY = 200
BLOCKS = 6

SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GATED = {**SHAPE, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"] * 2

#: family -> (class of its config, values)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**GATED}),
    "qwen2": ("Qwen2Config", {**GATED, "layer_types": SLIDING, "use_sliding_window": True, "sliding_window": 8}),
    "gemma2": ("Gemma2Config", {**GATED, "layer_types": SLIDING, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {**GATED, "layer_types": SLIDING, "sliding_window": 8}),
    "smollm3": ("SmolLM3Config", {**GATED, "no_rope_layers": [1, 1, 0, 1, 1, 0]}),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64,
                            "bos_token_id": 0, "eos_token_id": 1}),
    "neox": ("GPTNeoXConfig", {**SHAPE, "intermediate_size": 64}),
    "opt": ("OPTConfig", {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32}),
}  # fmt: skip


def build(family: str) -> Any:
    """A model whose blocks matter: large seeded weights, in fp32, in evaluation mode. One thread is its best."""
    import torch
    import transformers

    torch.set_num_threads(1)
    name, values = FAMILIES[family]
    config = getattr(transformers, name)(**values)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases, which start as ones and zeros
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model
