"""Frozen parameters beside adapters: not counted to what is saved, and left out of it.

A family may have parameters of its own that get no gradient (a router's correction bias): those are saved as ever.
"""

from __future__ import annotations

from typing import Any

from torch import nn

#: Where a model keeps the names of the parameters that are left out.
LEFT_OUT = "_frozen_left_out"


def leave_out_frozen(model: nn.Module) -> None:
    """Have the model's state dict be without the parameters that are frozen now, whichever of their names it has.

    DeepSpeed leaves out a tied weight by its first name alone, and would save it by its other.
    """
    named = model.named_parameters(remove_duplicate=False)
    frozen = frozenset(name for name, parameter in named if not parameter.requires_grad)

    def take_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        for name in frozen:
            state.pop(prefix + name, None)

    setattr(model, LEFT_OUT, frozen)
    model.register_state_dict_post_hook(take_out)


def left_out(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that ``leave_out_frozen`` left out."""
    return getattr(model, LEFT_OUT, frozenset())


def count_saved(model: nn.Module) -> int:
    """Parameters that a checkpoint holds, tied ones once."""
    gone = left_out(model)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in gone)
