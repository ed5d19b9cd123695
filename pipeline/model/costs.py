"""What a model costs: parameters, FLOPs and memory, all without weights and without a GPU.

Everything here is arithmetic on a Hugging Face config or on a model on the meta device, so that a plan can be checked
before an hour of a cluster is spent, and so that training logs and plan count with one formula.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.model.architecture import auto_class, why_not_made
from pipeline.model.head import chunk_length

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: What of the activations is computed a second time in the backward pass.
Checkpointing = Literal["none", "selective", "full"]

#: Dense bf16 FLOP/s by words of the device's name, first match wins. From NVIDIA's and AMD's data sheets, which print
#: most of these with 2:4 sparsity: halved here (H100 SXM: 1,978.9 TFLOP/s with sparsity).
PEAK_FLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("GH200",), 989.4e12),
    (("H200", "NVL"), 835.5e12),
    (("H200",), 989.4e12),
    (("H100", "PCIe"), 756e12),
    (("H100", "NVL"), 835.5e12),
    (("H100",), 989.4e12),
    (("H800", "PCIe"), 756e12),
    (("H800",), 989.4e12),
    (("H20",), 148e12),
    (("GB200",), 2500e12),
    (("B200",), 2250e12),
    (("A100",), 312e12),
    (("A800",), 312e12),
    (("L40S",), 362e12),
    (("A40",), 149.7e12),
    (("MI300X",), 1307.4e12),
    (("MI250X",), 191.5e12),  # one of its two dies, which is what a device is here
)


def meta_model(hf_config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config on the meta device, whole: shapes without memory, tied weights tied.

    Raises RegrowError when it is no causal language model (``architecture``), or cannot be made from the config.
    """
    loader = auto_class(hf_config)
    try:
        with torch.device("meta"):
            return loader.from_config(hf_config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a class makes of values that it did not foresee
        why = why_not_made(hf_config, error)
        raise RegrowError(
            f"no model can be made from {type(hf_config).__name__}: {why}; correct the config, or fetch the model again"
        ) from None


def text_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that text goes through, tied ones once: of a multimodal wrapper the decoder and the head.

    Training on text gives no gradient to the others, so that it leaves them as they are. Of any other model, all.
    """
    if model.config.get_text_config() is model.config:
        return list(model.parameters())
    parts = [part for part in (model.get_decoder(), model.get_output_embeddings()) if part is not None]
    return list(nn.ModuleList(parts).parameters())


def product_parameters(model: nn.Module) -> int:
    """Parameters that text is multiplied by: without the input embedding, which is a lookup and no product.

    Embeddings of positions are left out too, and what no text goes through (``text_parameters``). A tied head counts:
    its product with the hidden state is computed. Needs whole parameters: call it before ZeRO stage 3 splits them, or
    on the meta device.
    """
    lookups = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    if head is not None:
        lookups -= {id(parameter) for parameter in head.parameters()}
    return sum(parameter.numel() for parameter in text_parameters(model) if id(parameter) not in lookups)


def attention_width(hf_config: PreTrainedConfig) -> int:
    """Query heads x head size: the width of the attention's two products, which need not be the hidden size."""
    heads = hf_config.num_attention_heads
    return heads * (getattr(hf_config, "head_dim", None) or hf_config.hidden_size // heads)


def flops_per_token(
    parameters_without_input_embedding: int, blocks: int, width: int, row_length: int, frozen: int = 0
) -> float:
    """FLOPs to train on one token, forward and backward: 6 N + 12 L (H Q) T, and 2 less for each of N's parameters
    that is ``frozen``: its gradient is not made.

    N is ``product_parameters``, L ``blocks``, H Q ``width`` (``attention_width``) and T ``row_length``, attention
    counted in full and not causally halved; recomputed activations do not count. PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311), appendix B; the convention of torchtitan, OLMo-core, llm-foundry and nanochat, here ``palm``.
    """
    return 6.0 * parameters_without_input_embedding - 2.0 * frozen + 12.0 * blocks * width * row_length


def model_flops_per_token(model: PreTrainedModel, row_length: int, adapters: int | None = None) -> float:
    """``flops_per_token`` of a model whose parameters are whole (see ``product_parameters``); of one with ``adapters``,
    so many parameters, which alone are trained."""
    config = model.config.get_text_config()
    counted = product_parameters(model)
    frozen = 0 if adapters is None else counted - adapters
    return flops_per_token(counted, config.num_hidden_layers, attention_width(config), row_length, frozen)


def forward_flops_per_token(model: PreTrainedModel, row_length: int) -> float:
    """FLOPs of a forward alone for a token: a third of ``model_flops_per_token``."""
    return model_flops_per_token(model, row_length) / 3


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by the name that torch gives it; None for a CPU, a MIG slice or an unknown GPU."""
    # Whole words, so that an RTX A4000 is not taken for an A40.
    name = set(re.split(r"[^A-Z0-9]+", device_name.upper()))
    if "MIG" in name:
        return None
    return next((peak for words, peak in PEAK_FLOPS if {word.upper() for word in words} <= name), None)


def mfu(tokens_per_second_per_device: float, flops_per_token: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation, 0 to 1, in the convention of ``flops_per_token``; None where the peak is unknown."""
    return None if peak is None else tokens_per_second_per_device * flops_per_token / peak


def activation_bytes(hf_config: PreTrainedConfig, rows: int, row_length: int, weight_bytes: int = 2) -> int:
    """Bytes that autograd keeps for the backward pass of one block, for a Llama block of Hugging Face.

    With w bytes a value, hidden size h, query width q, key (and value) width k, MLP width f and a heads, a token
    keeps 2 x (4 h + 2 w h + 4) for the two norms (fp32 input, normalised, output, fp32 scale), 2 w (q + k) + 4 a for
    attention that stores no T x T matrix (query, key, value, output, log-sum-exp) and 4 w f for the gated MLP (gate,
    its activation, up, their product). Exact for Llama in bf16 with sdpa; an estimate for other models. The method
    is that of Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1.
    """
    heads, hidden, query, key, middle = _widths(hf_config)
    norms = 2 * (4 * hidden + 2 * weight_bytes * hidden + 4)
    attention = 2 * weight_bytes * (query + key) + 4 * heads
    return rows * row_length * (norms + attention + 4 * weight_bytes * middle)


def selective_bytes(hf_config: PreTrainedConfig, rows: int, row_length: int, weight_bytes: int = 2) -> int:
    """Bytes that selective recomputing keeps of a block: its input, and what its seven products and attention give.

    With the letters of ``activation_bytes`` a token keeps w (3 h + 2 q + 2 k + 2 f) + 4 a. An estimate.
    """
    heads, hidden, query, key, middle = _widths(hf_config)
    values = 3 * hidden + 2 * query + 2 * key + 2 * middle
    return rows * row_length * (weight_bytes * values + 4 * heads)


def _widths(hf_config: PreTrainedConfig) -> tuple[int, int, int, int, int]:
    """Heads, hidden size, width of the queries, of keys and of values, and of the MLP."""
    heads, query = hf_config.num_attention_heads, attention_width(hf_config)
    key = query // heads * (getattr(hf_config, "num_key_value_heads", None) or heads)
    middle = getattr(hf_config, "intermediate_size", None) or 4 * hf_config.hidden_size
    return heads, hf_config.hidden_size, query, key, middle


@dataclass(frozen=True)
class Trained:
    """A model as training holds it: ``parameters`` that get gradients and ``frozen`` ones beside them.

    ``largest_module`` has the most parameters of those that ZeRO stage 3 gathers as a whole. ``blocks`` of
    ``hf_config``'s widths (default: as many as it says), weights of ``weight_bytes``: 2 in bf16, 4 in fp32.
    ``adapted``: bytes that a block's adapters keep of a token, beside what the block does; with any the head is frozen.
    """

    parameters: int
    largest_module: int
    hf_config: PreTrainedConfig
    frozen: int = 0
    blocks: int | None = None
    weight_bytes: int = 2
    adapted: int = 0


def memory_per_gpu(
    trained: Trained,
    zero_stage: int,
    processes: int,
    micro_batch: int,
    row_length: int,
    *,
    gradient_checkpointing: Checkpointing = "none",
) -> dict[str, int]:
    """Estimated bytes on one GPU, by item and in ``total``, for AdamW under DeepSpeed with fp32 accumulation.

    With N parameters: weights and gradients 2 N each in bf16, accumulation 4 N, optimizer 12 N (fp32 master, m, v).
    ZeRO stage 1 divides the optimizer by the processes, 2 the gradients and the accumulation too, 3 the weights too,
    but gathers the largest module twice (the one at work and the next). Training in fp32 has no accumulation apart
    from the gradients; the master copy exists from stage 1 on. ZeRO 0 in bf16 keeps fp32 weights and gradients (4 N
    each) beside autocast's bf16 copies (2 N) and the two moments (8 N). Frozen parameters are weights alone.

    Activations: ``activation_bytes`` for each block; with full ``gradient_checkpointing`` each block's input, with
    selective also what its products and attention give, and in both one block recomputed. Loss (``model/head.py``): 14
    bytes for each token of a chunk and vocabulary entry (bf16 product; in fp32 logits, log-softmax and a soft cap), and
    in fp32 the gradient of a head that is trained. Not counted: the CUDA context, communication buckets, fragmentation;
    leave a tenth of the GPU for them.
    """
    hf_config, parameters, weight_bytes = trained.hf_config, trained.parameters, trained.weight_bytes
    blocks = hf_config.num_hidden_layers if trained.blocks is None else trained.blocks
    fp32 = weight_bytes == 4
    autocast = zero_stage == 0 and not fp32
    share = [processes if zero_stage >= stage else 1 for stage in range(4)]
    tokens = micro_batch * row_length
    per_block = activation_bytes(hf_config, micro_batch, row_length, weight_bytes) + tokens * trained.adapted
    kept = {
        "none": per_block,
        "selective": selective_bytes(hf_config, micro_batch, row_length, weight_bytes),
        "full": tokens * weight_bytes * hf_config.hidden_size,
    }
    items = {
        "weights": (6 if autocast else weight_bytes) * (parameters + trained.frozen) // share[3],
        "gradients": (4 if autocast else weight_bytes) * parameters // share[2],
        "accumulation": 0 if fp32 or autocast else 4 * parameters // share[2],
        "optimizer": (8 if zero_stage == 0 else 12) * parameters // share[1],
        "gathered": 2 * weight_bytes * trained.largest_module if zero_stage == 3 else 0,
        "activations": blocks * kept[gradient_checkpointing] + (0 if gradient_checkpointing == "none" else per_block),
        "loss": (12 + (0 if fp32 else 2)) * chunk_length(tokens, hf_config.vocab_size) * hf_config.vocab_size
        + (0 if trained.adapted else 4 * hf_config.vocab_size * hf_config.hidden_size),
    }
    return {**items, "total": sum(items.values())}


def accumulation(global_batch: int, micro_batch: int, processes: int) -> int:
    """Micro-batches that each process adds up for one optimizer step: global_batch / (micro_batch x processes).

    Raises RegrowError, with the nearest values that divide, when this is not a whole number.
    """
    together = micro_batch * processes
    if global_batch % together == 0:
        return global_batch // together
    below, above = global_batch // together * together, -(-global_batch // together) * together
    near = [f"a global batch of {' or '.join(str(n) for n in (below, above) if n)}"]
    if global_batch % processes == 0:
        rows = global_batch // processes
        fitting = [n for n in range(1, rows + 1) if rows % n == 0]
        smaller, larger = [n for n in fitting if n < micro_batch], [n for n in fitting if n > micro_batch]
        near.append(f"a micro-batch of {' or '.join(str(n) for n in (*smaller[-1:], *larger[:1]))}")
    fitting = [n for n in range(1, global_batch + 1) if global_batch % (n * micro_batch) == 0]
    smaller, larger = [n for n in fitting if n < processes], [n for n in fitting if n > processes]
    if fitting:
        near.append(f"{' or '.join(str(n) for n in (*smaller[-1:], *larger[:1]))} processes")
    raise RegrowError(
        f"a global batch of {global_batch} rows does not divide by a micro-batch of {micro_batch} x {processes} "
        f"processes = {together}; nearest that do: {', or '.join(near)}"
    )
