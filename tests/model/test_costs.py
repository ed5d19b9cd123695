"""Costs against what torch and autograd really do: counted FLOPs, kept tensors, parameters of built models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, T5Config

from pipeline.errors import RegrowError
from pipeline.model.costs import (
    Trained,
    accumulation,
    activation_bytes,
    attention_width,
    flops_per_token,
    memory_per_gpu,
    meta_model,
    mfu,
    peak_flops,
    product_parameters,
)
from pipeline.model.loss import next_token_losses


def llama(**changes: object) -> LlamaConfig:
    shape = {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "vocab_size": 500,
        "max_position_embeddings": 256,
    }
    return LlamaConfig(**{**shape, **changes})


VICUNA = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_attention_heads=32,
    num_hidden_layers=32,
    vocab_size=32000,
    tie_word_embeddings=False,
)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "vocab_size": 4000},
        {"num_key_value_heads": 2},
        {"head_dim": 64},
        {"num_hidden_layers": 2, "vocab_size": 8000},
    ],
    ids=["plain", "tied", "grouped queries", "wide heads", "large vocabulary"],
)
def test_formula_agrees_with_counted_flops(changes: dict, attention: str) -> None:
    config = llama(**changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    rows, length = 2, 256
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next_token_losses(model(ids, use_cache=False).logits, ids).mean().backward()
    counted = counter.get_total_flops() / (rows * length)
    formula = flops_per_token(product_parameters(model), config.num_hidden_layers, attention_width(config), length)
    assert formula == pytest.approx(counted, rel=0.02), f"formula {formula:,.0f}, counted {counted:,.0f} a token"


def test_input_embedding_is_left_out_unless_it_is_the_head_too() -> None:
    embedding = 500 * 128
    for tied in (False, True):
        model = meta_model(llama(tie_word_embeddings=tied))
        left_out = sum(p.numel() for p in model.parameters()) - product_parameters(model)
        assert left_out == (0 if tied else embedding), f"tied={tied}: {left_out} parameters left out"


def test_embedded_positions_are_no_product() -> None:
    model = meta_model(GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=100, vocab_size=500))
    assert sum(p.numel() for p in model.parameters()) - product_parameters(model) == 100 * 64


def test_a_model_that_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(RegrowError, match=r"^model type t5: "):
        meta_model(T5Config())


def test_recipe_flops_and_mfu_by_hand() -> None:
    # 6 x (5,524,115,456 - 131,072,000) + 12 x 26 x 4096 x 2048, worked out on paper.
    per_token = flops_per_token(5524115456 - 131072000, 26, 4096, 2048)
    assert per_token == 32358260736 + 2617245696
    peak = peak_flops("NVIDIA H100 80GB HBM3")
    assert mfu(14_144, per_token, peak) == pytest.approx(0.5, abs=1e-4)
    assert mfu(14_144, per_token, None) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A40", 149.7e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_peak_goes_by_whole_words_of_the_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def kept_for_backward(config: LlamaConfig, dtype: torch.dtype, rows: int, length: int, checkpointing: bool) -> int:
    """Bytes of the distinct storages that autograd keeps in a forward of the trunk, weights and buffers aside."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.model(torch.zeros((rows, length), dtype=torch.int64), use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"head_dim": 64}])
def test_activation_formula_equals_what_autograd_keeps(changes: dict) -> None:
    rows, length = 2, 128
    shallow, deep = (
        kept_for_backward(llama(num_hidden_layers=blocks, **changes), torch.bfloat16, rows, length, False)
        for blocks in (2, 4)
    )
    formula = activation_bytes(llama(**changes), rows, length)
    assert (deep - shallow) // 2 == formula, f"autograd keeps {(deep - shallow) // 2} bytes a block, not {formula}"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_checkpointing_keeps_the_input_of_each_block() -> None:
    rows, length = 2, 128
    shallow, deep = (
        kept_for_backward(llama(num_hidden_layers=blocks), torch.bfloat16, rows, length, True) for blocks in (2, 4)
    )
    one, two = (
        memory_per_gpu(Trained(10**6, 10**5, llama(), blocks=blocks), 1, 2, rows, length, gradient_checkpointing="full")
        for blocks in (1, 2)
    )
    assert two["activations"] - one["activations"] == (deep - shallow) // 2


def test_memory_of_the_recipe_at_every_zero_stage() -> None:
    parameters = 5524115456
    trained = Trained(parameters, 202383360, VICUNA, blocks=26)
    by_stage = [memory_per_gpu(trained, stage, 8, 2, 2048) for stage in range(4)]
    states = ("weights", "gradients", "accumulation", "optimizer")
    in_gb = [tuple(round(row[name] / 1e9, 1) for name in states) for row in by_stage]
    assert in_gb == [
        (33.1, 22.1, 0.0, 44.2),  # fp32 weights under autocast
        (11.0, 11.0, 22.1, 8.3),
        (11.0, 1.4, 2.8, 8.3),
        (1.4, 1.4, 2.8, 8.3),
    ]
    assert [row["gathered"] for row in by_stage] == [0, 0, 0, 2 * 2 * 202383360]
    assert 18e9 < by_stage[1]["activations"] < 23e9
    # One chunk of 4,096 tokens, and the head's gradient.
    assert by_stage[1]["loss"] == 14 * 4096 * 32000 + 4 * 32000 * 4096
    larger = [memory_per_gpu(trained, 1, 8, micro_batch, 2048)["loss"] for micro_batch in (4, 8, 16)]
    assert larger == [by_stage[1]["loss"]] * 3, "the loss takes more memory with more rows"
    for row in by_stage:
        assert row["total"] == sum(value for name, value in row.items() if name != "total")


def test_fp32_training_has_no_second_copy_of_gradients() -> None:
    row = memory_per_gpu(Trained(10**6, 10**5, llama(), weight_bytes=4), 0, 1, 1, 128)
    assert (row["weights"], row["gradients"], row["accumulation"], row["optimizer"]) == (4e6, 4e6, 0, 8e6)


def test_accumulation_of_the_recipe() -> None:
    assert accumulation(512, 2, 8) == 32


@pytest.mark.parametrize(
    ("batch", "named"),
    [
        ((512, 3, 8), ["512", "24", "504 or 528", "micro-batch of 2 or 4"]),
        ((512, 2, 6), ["12", "504 or 516", "4 or 8 processes"]),
        ((4, 8, 1), ["global batch of 8", "micro-batch of 4"]),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_near_values(batch: tuple, named: list[str]) -> None:
    with pytest.raises(RegrowError) as refusal:
        accumulation(*batch)
    assert all(part in str(refusal.value) for part in named), str(refusal.value)


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 16))
def test_accumulation_multiplies_back(global_batch: int, micro_batch: int, processes: int) -> None:
    try:
        steps = accumulation(global_batch, micro_batch, processes)
    except RegrowError:
        assert global_batch % (micro_batch * processes)
        return
    assert steps * micro_batch * processes == global_batch
