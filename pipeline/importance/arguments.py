"""What a model gives its blocks: the hidden state, and arguments beside it that a growing batch takes repeated.

Masks, positions and biases have to grow with the batch, and no shape says which of them does: a first axis as long as
the batch may be that of the heads, and Bloom's bias has batch x heads. So the model is asked: it makes these arguments
for every sequence twice, and what came out doubled is repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.model.blocks import replaced_forward
from pipeline.model.structure import BlockOutput
from pipeline.model.walking import run_without_head, take_hidden


@contextlib.contextmanager
def hooks_on(
    blocks: Iterable[nn.Module], *, before: Callable[..., object], after: Callable[..., object]
) -> Iterator[None]:
    """Within the context ``before`` and ``after`` are called around each block, with its arguments and its output."""
    handles = []
    try:
        for block in blocks:
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(block.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def arguments_for_twice(
    model: PreTrainedModel, running: dict[int, nn.Module], input_ids: torch.Tensor
) -> dict[nn.Module, tuple[tuple, dict[str, Any]]]:
    """What the model gives each running block beside the hidden state when every sequence is there twice, in turn.

    The first block alone computes, to see whether these blocks return tuples.
    """
    others = list(running.values())[1:]
    given: dict[nn.Module, tuple[tuple, dict[str, Any]]] = {}
    tuples: list[bool] = []

    def note(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given[block] = take_hidden(args, kwargs)[1:]

    def look(block: nn.Module, args: tuple, output: BlockOutput) -> None:
        tuples.append(isinstance(output, tuple))

    def hand_on(*args: object, **kwargs: object) -> BlockOutput:
        hidden = take_hidden(args, kwargs)[0]
        return (hidden,) if tuples[0] else hidden

    with hooks_on(running.values(), before=note, after=look), replaced_forward(others, hand_on):
        run_without_head(model, input_ids.repeat(2, 1))
    return given


def repeated(value: object, doubled: object, times: int, name: str) -> Any:
    """An argument of one batch for ``times`` such batches, one behind the other.

    ``doubled`` is what the model itself made of it for two. A tensor that is the same there belongs to all sequences
    and stays; one that is there twice as long, and twice the same, is repeated. Raises RegrowError on any other.
    """
    if isinstance(value, dict) and isinstance(doubled, dict) and value.keys() == doubled.keys():
        return {key: repeated(item, doubled[key], times, f"{name} {key}") for key, item in value.items()}
    if isinstance(value, tuple | list) and isinstance(doubled, tuple | list) and len(value) == len(doubled):
        return type(value)(repeated(item, other, times, name) for item, other in zip(value, doubled, strict=True))
    if isinstance(value, torch.Tensor) and isinstance(doubled, torch.Tensor):
        if _alike(value, doubled):
            return value
        if value.ndim and _alike(value.repeat(2, *[1] * (value.ndim - 1)), doubled):
            return value.repeat(times, *[1] * (value.ndim - 1))
    # Of an object that is none of these nothing is known but its class.
    if (
        type(value) is type(doubled)
        and not isinstance(value, torch.Tensor | dict | tuple | list)
        and (value == doubled or not isinstance(value, int | float | str))
    ):
        return value
    raise RegrowError(
        f"{name} is {_describe(value)} for a batch and {_describe(doubled)} for that batch twice: neither the same nor "
        "one behind the other, so that it cannot be made for the batch of all removals; criterion ppl cannot score "
        "this model"
    )


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to the rounding of another batch's kernels."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or (one.is_floating_point() and torch.allclose(one, other, rtol=1e-3, atol=1e-5))


def _describe(value: object) -> str:
    return (
        f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{type(value).__name__} {value!r:.60}"
    )
