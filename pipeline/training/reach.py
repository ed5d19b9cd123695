"""Which parameters text reaches: the others get no gradient, and must be left as they are.

A vision tower takes no part when a wrapper is trained on text alone. AdamW would still decay its weights wherever
ZeRO flattens them together with the rest, so that they are taken out before the engine is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.training.frozen import left_out

#: Tokens of the probe's only row: what a model computes, not what it says, is asked.
TOKENS = 8


def probe(model: nn.Module) -> Any:
    """The model's output for a short row of text, with autograd's graph: what training on text will have.

    In evaluation mode, so that no random number is drawn. The same on every process that has the same weights.
    """
    device, rows = next(model.parameters()).device, model.get_input_embeddings().weight.shape[0]
    was_training = model.training
    model.eval()
    with torch.enable_grad():
        output = model(input_ids=torch.arange(TOKENS, device=device)[None] % rows, use_cache=False)
    model.train(was_training)
    return output


def unreached(model: nn.Module, output: Any) -> dict[str, nn.Parameter]:
    """Parameters that have no path to a loss of ``output`` (from ``probe``), by name: they get no gradient. Those
    that stand frozen beside adapters are not asked.

    A path leads to the logits, or to the router's auxiliary loss. A router sends a short row to some experts only:
    the modules of a list inside a block count as one, and if one of them is reached, so are all.
    """
    found = _leaves([output.logits, getattr(output, "aux_loss", None)])
    named = [(name, parameter) for name, parameter in model.named_parameters() if name not in left_out(model)]
    kinds = {_kind(name) for name, parameter in named if parameter in found}
    return {name: parameter for name, parameter in named if _kind(name) not in kinds}


def describe_unreached(parameters: dict[str, nn.Parameter]) -> str:
    """One line for people: how many parameters are left as they are, and in which modules."""
    places = sorted({".".join(_before_number(name)) for name in parameters})
    count = sum(parameter.numel() for parameter in parameters.values())
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return f"{count:,} parameters that text does not reach stay as they are: {', '.join(places[:3])}{more}"


def _leaves(outputs: list[Any]) -> set[torch.Tensor]:
    """The leaf tensors that any of the outputs hangs on, by a walk over autograd's graph."""
    pending = [tensor.grad_fn for tensor in outputs if isinstance(tensor, torch.Tensor) and tensor.grad_fn]
    seen, leaves = set(pending), set()
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return leaves


def _kind(name: str) -> str:
    """``name`` with every number behind the first, which is the block's, left open: a block's experts are one kind."""
    before = _before_number(name)
    rest = name.split(".")[len(before) :]
    return ".".join([*before, *rest[:1], *("*" if part.isdigit() else part for part in rest[1:])])


def _before_number(name: str) -> list[str]:
    """The parts of a parameter's name that stand before the first number in it; without a number, all but the last."""
    parts = name.split(".")
    return parts[: next((at for at, part in enumerate(parts) if part.isdigit()), len(parts) - 1)]
