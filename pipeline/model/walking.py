"""Walking through a model block by block: what the model itself would give a block, without running those before it.

The model's own forward makes masks, positions and rotary tables; the blocks before the one that is wanted stand in for
themselves and hand their state on. So a block may have its weights when it is its turn, and no other needs any.
"""

from __future__ import annotations

import contextlib
from itertools import count
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.model.blocks import replaced_forward
from pipeline.model.structure import BlockOutput, tensors_in


def run_without_head(model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """The decoder alone: the dense logits come from the head's one place, in each walk."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    decoder(input_ids=input_ids, use_cache=False)


def take_hidden(args: tuple, kwargs: dict[str, Any]) -> tuple[torch.Tensor, tuple, dict[str, Any]]:
    """The hidden state that a block is given, and its other arguments."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {name: value for name, value in kwargs.items() if name != "hidden_states"}


class _Reached(Exception):
    """The forward has come to the block whose arguments are wanted."""


def block_arguments(
    model: PreTrainedModel, blocks: nn.ModuleList, index: int, ids: torch.Tensor, returns: int | None
) -> tuple[torch.Tensor, tuple, dict[str, Any]]:
    """What the model enters its first block with, and what it gives block ``index`` beside the hidden state.

    The model's own forward makes the arguments, for as many rows as will go through the block; the blocks before hand
    their state on. ``returns`` is how long the tuples are that blocks return, 0 where they return the state alone.
    Raises RegrowError when a block is given something else that a block made, or a state that was changed in between.
    """
    refusal = f"{type(model).__name__}: blocks cannot be left out"
    places, entered, given = count(), [], []
    other = torch.empty(0)  # stands for whatever else a block returns

    def stand_in(*args: object, **kwargs: object) -> BlockOutput:
        hidden, args, kwargs = take_hidden(args, kwargs)
        entered.append(hidden)
        if hidden is not entered[0] and not torch.equal(hidden.nan_to_num(), entered[0].nan_to_num()):
            raise RegrowError(f"{refusal}, something happens between blocks {len(entered) - 2} and {len(entered) - 1}")
        if any(tensor is other for tensor in tensors_in([args, kwargs])):
            raise RegrowError(f"{refusal}, block {len(entered) - 1} also reads what a block before it made")
        if next(places) == index:
            given.append((args, kwargs))
            raise _Reached
        return (hidden, *[other] * (returns - 1)) if returns else hidden

    with replaced_forward(blocks, stand_in), contextlib.suppress(_Reached):
        run_without_head(model, ids)
    if not given:
        raise RegrowError(f"{refusal}, one forward ran {len(entered)} blocks, the model has {len(blocks)}")
    return entered[0], *given[0]
