"""What looks into a model must know of accelerate's hooks: where its inputs go, and whose forward is called when.

A dispatched model's modules have a forward of accelerate's, which brings the weights, calls the module's own (kept as
``_old_forward``) and lets them go. Until then they are on the meta device, as in a model that has no weights at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate brings this model's weights to where they are needed."""
    return hasattr(model, "_hf_hook")


def is_hollow(model: nn.Module) -> bool:
    """Whether the model cannot be run: some of its weights are nowhere."""
    return not is_dispatched(model) and any(parameter.is_meta for parameter in model.parameters())


def input_device(model: nn.Module) -> torch.device:
    """Where a model's inputs go: to its first weights, or to where accelerate lets a dispatched one begin."""
    if is_dispatched(model):
        return torch.device(model._hf_hook.execution_device)
    return next(model.parameters()).device


@contextlib.contextmanager
def own_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context ``forward`` stands in for the module's own, and finds its weights where they are needed."""
    name = "_old_forward" if is_dispatched(module) else "forward"
    before = module.__dict__.get(name)
    setattr(module, name, forward)
    try:
        yield
    finally:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)
