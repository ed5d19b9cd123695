"""Sums of gradients over micro-batches: bf16 gradients into fp32 sums, in one pass over memory.

DeepSpeed's bf16 optimizer (ZeRO 1) writes an fp32 copy of every gradient, and adds that: 18 bytes for each parameter
and micro-batch, where 10 are enough. torch adds a bf16 tensor to an fp32 one as it reads it, to the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def sum_in_one_pass(optimizer: Any) -> None:
    """Have a DeepSpeed ``BF16_Optimizer`` add gradients as they come."""
    sums, has_gradients = optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients

    @torch.no_grad()
    def add(parameter: nn.Parameter, group: int, place: int, clear_lp_grads: bool) -> None:
        if parameter.grad is None:
            return
        total = sums[group][place]
        total.add_(parameter.grad.view(total.shape))
        parameter._hp_grad = total
        has_gradients[group][place] = True
        if clear_lp_grads:
            parameter.grad.zero_()

    optimizer._update_hp_grad = add
