"""Recomputing activations in the backward pass, all of a block's or those that are cheap to make again.

``full`` keeps each block's input alone, and runs the block a second time: a third more work (Chen et al. 2016, arXiv
1604.06174). ``selective`` keeps what products and attention gave too, and makes the rest again, norms, activations and
residuals: little work, and what takes most of the memory in between (Korthikanti et al. 2022, arXiv 2205.05198).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from pipeline.model.costs import Checkpointing

_ATEN = torch.ops.aten
#: Operations whose results are kept: products, and every kernel of attention.
KEPT = (
    _ATEN.mm.default,
    _ATEN.bmm.default,
    _ATEN.addmm.default,
    _ATEN.baddbmm.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_attention_math.default,
)


def recompute(model: PreTrainedModel, what: Checkpointing) -> None:
    """Have each block of a Hugging Face model recompute ``what`` in the backward pass."""
    if what == "none":
        return
    arguments: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)


def _policy(
    context: SelectiveCheckpointContext, operation: OpOverload, *arguments: object, **keywords: object
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
