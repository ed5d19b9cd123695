"""Transformer blocks of a decoder: finding them, leaving some out for a while, removing them for good.

Removal keeps the model a plain Hugging Face model: blocks are renumbered, ``num_hidden_layers`` is lowered, and what
the config says of single blocks (``layer_types``, ``no_rope_layers``, ...) follows the kept ones, so that a block's
attention type stays its own (``pipeline.model.depth``). Skipping is independent of removal: it calls the dense model
with some blocks turned into the identity, so that each can be checked against the other.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.model.depth import PLACES, set_values, shorten
from pipeline.model.structure import find_blocks, require_separate_blocks

__all__ = [
    "block_parameters",
    "check_indices",
    "find_blocks",
    "remove_blocks",
    "replaced_forward",
    "require_removable",
    "skip_blocks",
    "whole_numbers",
]


def whole_numbers(indices: Iterable[int]) -> list[int]:
    """Block indices as plain numbers; RegrowError where one is none: 2.0 would be no block's."""
    try:
        return [operator.index(index) for index in indices]
    except TypeError:
        shown = repr(indices) if isinstance(indices, list | tuple | str | int) else type(indices).__name__
        raise RegrowError(f"blocks {shown:.100}: a list of whole numbers is wanted, the indices of blocks") from None


def check_indices(indices: Iterable[int], total: int) -> list[int]:
    """Sorted block indices; RegrowError unless they are whole, distinct, within range, and leave at least one block."""
    wanted = sorted(whole_numbers(indices))
    if len(set(wanted)) != len(wanted):
        raise RegrowError(f"blocks {wanted}: an index stands twice")
    if wanted and not (wanted[0] >= 0 and wanted[-1] < total):
        raise RegrowError(f"blocks {wanted}: the model has blocks 0 to {total - 1}")
    if len(wanted) >= total:
        raise RegrowError(f"all {total} blocks would be removed; at least one must stay")
    return wanted


@contextlib.contextmanager
def skip_blocks(model: PreTrainedModel, indices: Sequence[int]) -> Iterator[None]:
    """Within the context the named blocks are the identity and cost nothing. Nothing is left behind afterwards.

    >>> with skip_blocks(model, [3, 4]):
    ...     without = perplexity(model, batches)["value"]

    A cache of keys and values may be used inside: a skipped block keeps its slot there as long as the others', with
    one number for each token. Raises RegrowError on impossible indices, and where blocks are tied to each other.
    """
    blocks = find_blocks(model)
    skipped = [blocks[index] for index in check_indices(indices, len(blocks))]
    length = require_separate_blocks(model, blocks) if skipped else None
    with contextlib.ExitStack() as stack:
        for block in skipped:
            stack.enter_context(replaced_forward([block], _identity(block, length)))
        yield


def _identity(block: nn.Module, length: int | None) -> Callable[..., Any]:
    """A forward that hands its hidden state on, as a block returns it: alone (None), or first of a tuple."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    places = (getattr(module, name, None) for module in block.modules() for name in PLACES)
    slots = {place for place in places if isinstance(place, int)}

    def identity(hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        for cache in [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]:
            cache = getattr(cache, "self_attention_cache", cache)
            # transformers reads how many tokens a cache holds from the first slot of a kind.
            filler = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            for slot in slots:
                if slot >= len(cache.layers) or isinstance(cache.layers[slot], CacheLayerMixin):
                    cache.update(filler, filler, slot)
        return hidden_states if length is None else (hidden_states, *[None] * (length - 1))

    return identity


@contextlib.contextmanager
def replaced_forward(blocks: Iterable[nn.Module], forward: Callable[..., object]) -> Iterator[None]:
    """Within the context ``forward`` stands in for the blocks' own."""
    blocks = list(blocks)
    # An instance attribute shadows the class's forward. One that was there before (from a context around this one, or
    # from accelerate) is put back; else the attribute goes.
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = forward
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            del block.forward
            if own is not None:
                block.forward = own


def remove_blocks(model: PreTrainedModel, indices: Sequence[int]) -> PreTrainedModel:
    """Remove the named blocks in place and return the model, renumbered and with a config that fits.

    >>> remove_blocks(model, [3, 4]).config.num_hidden_layers
    6
    >>> model.config.regrow["kept_blocks"]
    [0, 1, 2, 5, 6, 7]

    The original indices and what was removed stand in ``config.regrow`` so that they travel with the model; a model
    pruned before keeps the indices of the first dense model.

    Raises RegrowError on impossible indices, where blocks are tied to each other, and where the config has no way to
    describe the blocks that are left, or these could not generate; the model is then as it was.
    """
    blocks = find_blocks(model)
    total = len(blocks)
    kept, values, changes = _shortened(model, indices)
    config = model.config.get_text_config()
    before = getattr(config, "regrow", None) or {"kept_blocks": list(range(total)), "dense_blocks": total}
    survivors = [blocks[index] for index in kept]
    del blocks[:]
    for part, follows in zip([*survivors, model], changes, strict=True):
        for path, attribute, value in follows:
            setattr(part.get_submodule(path), attribute, value)
    blocks.extend(survivors)
    # Some models give their parts a config of their own.
    parts = (getattr(module, "config", None) for module in model.modules())
    owned = [own for own in parts if type(own) is type(config)]
    for each in {id(each): each for each in (config, *owned)}.values():
        set_values(each, values)
    original = [before["kept_blocks"][index] for index in kept]
    config.regrow = {
        **before,
        "kept_blocks": original,
        "removed_blocks": [index for index in range(before["dense_blocks"]) if index not in original],
    }
    return model


def blocks_of_first(model: PreTrainedModel) -> tuple[int, list[int]] | None:
    """Of a model that was pruned before, how many blocks the first dense model had, and which of them these are; None
    of a dense one."""
    known = getattr(model.config.get_text_config(), "regrow", None)
    return None if known is None else (known["dense_blocks"], known["kept_blocks"])


def require_removable(model: PreTrainedModel, indices: Sequence[int]) -> None:
    """RegrowError where ``remove_blocks`` would refuse; nothing is changed. A model on the meta device will do."""
    _shortened(model, indices)


def _shortened(
    model: PreTrainedModel, indices: Sequence[int]
) -> tuple[list[int], dict[str, Any], list[list[tuple[str, str, Any]]]]:
    """The blocks that stay, and what ``shorten`` says of the model with these alone."""
    blocks = find_blocks(model)
    removed = check_indices(indices, len(blocks))
    kept = [index for index in range(len(blocks)) if index not in removed]
    require_separate_blocks(model, blocks)
    return kept, *shorten(model, kept, len(blocks))


def block_parameters(model: PreTrainedModel) -> list[int]:
    """Number of parameters of each block."""
    return [sum(parameter.numel() for parameter in block.parameters()) for block in find_blocks(model)]
