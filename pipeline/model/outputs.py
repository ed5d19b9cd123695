"""Logits alone: what a config.json asks a forward to return beside them, or instead.

Hidden states, attentions and plain tuples are wishes of whoever saved the config; nothing here could read them, and a
config that asks for attentions cannot even be saved under the kernels of today. Router logits are more: they ask for
the loss that balances experts in training. That wish stays while a router does, and is put aside where
blocks are left out or stood in for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

#: What a config may ask for, with the value that asks for logits alone.
WISHES = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
ROUTERS = {"output_router_logits": False}


def return_logits(model: nn.Module) -> None:
    """Have the model's forward, and those of its parts, return logits in an output class; router logits if asked."""
    for config, name, plain in _asked(model, WISHES):
        setattr(config, name, plain)


def ask_no_routers(model: nn.Module) -> bool:
    """Have the configs ask for no router logits, as where no router is left, and a forward that looks for them would
    fail. Returns whether they did ask."""
    asked = _asked(model, ROUTERS)
    for config, name, plain in asked:
        setattr(config, name, plain)
    return bool(asked)


@contextlib.contextmanager
def logits_alone(model: nn.Module) -> Iterator[None]:
    """Within the context the model returns logits and nothing beside them; its config is then as it was."""
    before = [(config, name, getattr(config, name)) for config, name, _ in _asked(model, WISHES | ROUTERS)]
    try:
        for config, name, _ in before:
            setattr(config, name, (WISHES | ROUTERS)[name])
        yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)


def _asked(model: nn.Module, wishes: dict[str, bool]) -> list[tuple[Any, str, bool]]:
    """Which configs of a model and its parts ask for more: (config, name, the value that does not)."""
    from transformers import PretrainedConfig

    owned = [
        config for module in model.modules() if isinstance(config := getattr(module, "config", None), PretrainedConfig)
    ]
    configs = {id(config): config for one in owned for config in (one, one.get_text_config())}
    return [
        (config, name, plain)
        for config in configs.values()
        for name, plain in wishes.items()
        if getattr(config, name, plain) != plain
    ]
