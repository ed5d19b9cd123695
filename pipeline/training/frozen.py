"""Frozen parameters: not counted to what is trained, and left out of what is saved."""

from __future__ import annotations

from typing import Any

from torch import nn


def count_trained(model: nn.Module) -> int:
    """Parameters that are trained, and that a checkpoint holds; tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def leave_out_frozen(model: nn.Module) -> bool:
    """Have the model's state dict be without the parameters that are frozen now; returns whether there are any.

    DeepSpeed leaves out a tied weight by its first name alone, and would save it by its other.
    """
    named = model.named_parameters(remove_duplicate=False)
    frozen = [name for name, parameter in named if not parameter.requires_grad]

    def take_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        for name in frozen:
            state.pop(prefix + name, None)

    if frozen:
        model.register_state_dict_post_hook(take_out)
    return bool(frozen)
