"""Transformer blocks of a decoder: finding them, leaving some out for a while, removing them for good.

Removal keeps the model a plain Hugging Face model: blocks are renumbered, ``num_hidden_layers`` is lowered, and every
per-block list of the config (``layer_types``, ``no_rope_layers``, ...) keeps the entries of the kept blocks, so that
a block's attention type stays its own. Skipping is independent of removal: it calls the dense model with some blocks
turned into the identity, so that each can be checked against the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.run import RegrowError


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of Transformer blocks: the one ModuleList as long as the config says, all of one class.

    Raises RegrowError with the candidates when there is none, or more than one.
    """
    total = model.config.get_text_config().num_hidden_layers
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = [module for module in lists.values() if len(module) == total and len({type(b) for b in module}) == 1]
    if len(found) != 1:
        tree = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "none"
        raise RegrowError(
            f"{type(model).__name__}: expected one list of {total} blocks of one class, found {len(found)}; "
            f"module lists: {tree}"
        )
    return found[0]


def check_indices(indices: Sequence[int], total: int) -> list[int]:
    """Sorted block indices; RegrowError unless they are distinct, within range, and leave at least one block."""
    wanted = sorted(indices)
    if len(set(wanted)) != len(wanted):
        raise RegrowError(f"blocks {wanted}: an index stands twice")
    if wanted and not (wanted[0] >= 0 and wanted[-1] < total):
        raise RegrowError(f"blocks {wanted}: the model has blocks 0 to {total - 1}")
    if len(wanted) >= total:
        raise RegrowError(f"all {total} blocks would be removed; at least one must stay")
    return wanted


@contextlib.contextmanager
def skip_blocks(model: nn.Module, indices: Sequence[int]) -> Iterator[None]:
    """Within the context the named blocks are the identity and cost nothing. Nothing is left behind afterwards."""
    blocks = find_blocks(model)
    skipped = [blocks[index] for index in check_indices(indices, len(blocks))]
    returns_tuple = _returns_tuple(model, blocks) if skipped else False

    def identity(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if returns_tuple else hidden_states

    with replaced_forward(skipped, identity):
        yield


@contextlib.contextmanager
def replaced_forward(blocks: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context ``forward`` stands in for the blocks' own."""
    blocks = list(blocks)
    try:
        for block in blocks:
            # An instance attribute shadows the class's forward; deleting it restores the block exactly.
            block.forward = forward
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _returns_tuple(model: nn.Module, blocks: nn.ModuleList) -> bool:
    """Whether this model's blocks return a tuple (older modelling code) or the hidden states alone."""
    seen: list[bool] = []
    hook = blocks[0].register_forward_hook(lambda module, args, output: seen.append(isinstance(output, tuple)))
    try:
        with torch.no_grad():
            model(torch.zeros((1, 1), dtype=torch.int64, device=blocks[0].parameters().__next__().device),
                  use_cache=False)  # fmt: skip
    finally:
        hook.remove()
    return seen[0]


def remove_blocks(model: nn.Module, indices: Sequence[int]) -> nn.Module:
    """Remove the named blocks in place and return the model, renumbered and with a config that fits.

    The original indices and what was removed stand in ``config.regrow`` so that they travel with the model; a model
    pruned before keeps the indices of the first dense model. Raises RegrowError on impossible indices.
    """
    blocks = find_blocks(model)
    total = len(blocks)
    removed = check_indices(indices, total)
    kept = [index for index in range(total) if index not in removed]
    config = model.config.get_text_config()
    before = getattr(config, "regrow", None) or {"kept_blocks": list(range(total)), "dense_blocks": total}
    per_block = {name: [value[index] for index in kept] for name, value in per_block_lists(config, total).items()}
    survivors = [blocks[index] for index in kept]
    for number, block in enumerate(survivors):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    del blocks[:]
    blocks.extend(survivors)
    config.num_hidden_layers = len(survivors)
    for name, values in per_block.items():
        setattr(config, name, values)
    original = [before["kept_blocks"][index] for index in kept]
    config.regrow = {
        "dense_blocks": before["dense_blocks"],
        "kept_blocks": original,
        "removed_blocks": [index for index in range(before["dense_blocks"]) if index not in original],
    }
    return model


def per_block_lists(config: Any, total: int) -> dict[str, list[Any]]:
    """The config's lists with one entry for each block, by name."""
    plain = config.to_dict()
    return {
        name: list(value)
        for name, value in plain.items()
        # A list of end tokens, say, may be as long as a small model has blocks.
        if isinstance(value, list | tuple) and len(value) == total
        and name != "architectures" and not name.endswith("token_id")
    }  # fmt: skip


def block_parameters(model: nn.Module) -> list[int]:
    """Number of parameters of each block."""
    return [sum(parameter.numel() for parameter in block.parameters()) for block in find_blocks(model)]
