"""Dropped gradients: an accumulation that ends without an update, at every ZeRO stage, and leaves nothing behind.

DeepSpeed's optimizers (ZeRO 1 to 3, in bf16 and fp32 alike) leave an update out by themselves where the global gradient
norm is not finite, and clear all that they have summed. So one way leads out of every stage: gradients that are not
wanted are made infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def spoil_gradients(optimizer: Any) -> None:
    """Make what this process holds of the accumulated gradients infinite; ``optimizer`` is one of DeepSpeed's."""
    if hasattr(optimizer, "fp32_groups_gradients_flat"):
        held: Iterable[torch.Tensor] = optimizer.fp32_groups_gradients_flat
    else:
        held = (gradient for group in optimizer.averaged_gradients.values() for gradient in group)
    for gradient in held:
        gradient.fill_(math.inf)


def plain_norm(model: nn.Module) -> tuple[list[nn.Parameter], torch.Tensor]:
    """What plain AdamW (ZeRO 0) trains, and the norm of its gradients, scalar: DeepSpeed would not tell it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        # An expert that no token of the batch was sent to: AdamW would pass it over, but under ZeRO it does not.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return trained, nn.utils.get_total_norm([parameter.grad for parameter in trained])


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Take the gradients away: what has none, AdamW leaves as it is, and counts no step for it."""
    for parameter in parameters:
        parameter.grad = None
