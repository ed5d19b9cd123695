"""Where a decoder keeps its Transformer blocks, and whether each of them can stand alone.

Blocks are found by structure, not by a list of known models. A block may be left out only if the next one can take
its place: it gets the hidden state that the block before it returned, and nothing else that another block made. Models
that tie their blocks together otherwise (keys and values shared between blocks, parameters of one block used by
another, an embedding table with a part for each block, residuals that jump over blocks) are refused here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pipeline.errors import RegrowError
from pipeline.model.hooks import input_device, is_hollow
from pipeline.model.outputs import logits_alone

#: Values of a config that tie blocks to each other, with what they stand for.
TIES = {
    "num_kv_shared_layers": "its last blocks read the keys and values that earlier blocks made",
    "kv_sharing_modes": "some blocks read the keys and values that earlier blocks made",
    "use_cla": "blocks share keys and values (cross-layer attention)",
    "hidden_size_per_layer_input": "its table of per-layer embeddings has a part for each block",
    "altup_num_inputs": "several streams run through its blocks, and each block predicts and corrects them all",
}
#: What one token showed of a model's list of blocks: which blocks these were, and how long the tuples are.
_WATCHED: WeakKeyDictionary[nn.ModuleList, tuple[tuple[int, ...], int | None]] = WeakKeyDictionary()
#: What a block returns: its hidden state (B, T, d), alone or first of a tuple.
BlockOutput = torch.Tensor | tuple[torch.Tensor, ...]
#: A module tree in an error message is cut to so many levels and characters.
TREE_DEPTH, TREE_LENGTH = 4, 1200


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of Transformer blocks: the one ModuleList of composite modules as long as the config says.

    Lists inside a block (experts) do not count, and a decoder's own list goes before that of a vision tower beside
    it. Blocks may be of several classes (models that mix attention with other layers).

    Raises RegrowError with the model's module tree when there is no such list, or more than one.
    """
    require_model(model)
    config = getattr(model, "config", None)
    total = getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == total
        # A norm or a projection for each block is a list too, but of single layers.
        and all(any(True for _ in entry.children()) and any(True for _ in entry.parameters()) for entry in module)
    }
    found = {name: module for name, module in found.items() if not any(name.startswith(f"{other}.") for other in found)}
    if len(found) > 1 and not getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_decoder"):
        inside = {id(module) for module in model.get_decoder().modules()}
        found = {name: module for name, module in found.items() if id(module) in inside}
    if len(found) != 1:
        wanted = f"{total} blocks, as its config says" if total else "blocks (its config has no num_hidden_layers)"
        raise RegrowError(
            f"{type(model).__name__}: expected one list of {wanted}, found {len(found)}"
            f"{' (' + ', '.join(found) + ')' if found else ''}; its modules: {module_tree(model)}"
        )
    return next(iter(found.values()))


def require_model(model: object) -> None:
    """RegrowError where this is no model at all: a path, say, or batches in its place."""
    if not isinstance(model, nn.Module):
        raise RegrowError(
            f"model: a causal language model of transformers is wanted, got {type(model).__name__}; "
            'load_model("folder, or owner/name") gives one'
        )


def module_tree(module: nn.Module, depth: int = TREE_DEPTH) -> str:
    """The modules of a model in one line: ``Model(embed: Embedding, layers: 6 x Block(attn: ..., mlp: ...))``."""
    text = _tree(module, depth)
    return text if len(text) <= TREE_LENGTH else text[:TREE_LENGTH] + " ..."


def _tree(module: nn.Module, depth: int) -> str:
    if isinstance(module, nn.ModuleList):
        first = {type(entry).__name__: entry for entry in reversed(module)}
        counts = Counter(type(entry).__name__ for entry in module)
        return " + ".join(f"{count} x {_tree(first[name], depth)}" for name, count in counts.items()) or "empty list"
    children = [f"{name}: {_tree(child, depth - 1)}" for name, child in module.named_children()]
    if not children:
        return type(module).__name__
    return f"{type(module).__name__}({', '.join(children) if depth > 1 else '...'})"


def require_separate_blocks(model: nn.Module, blocks: nn.ModuleList) -> int | None:
    """Check that each block takes the hidden state of the one before it and nothing else that a block made.

    Looks at the config and at shared parameters, then sends one token through the model, in evaluation mode and
    without a cache, and watches what each block is given: once for the same blocks, since on a GPU one token costs as
    much as a batch. A model on the meta device is not run. Returns how long the tuple is that these blocks return, or
    None where they return the hidden state alone.

    Raises RegrowError with the tie where blocks cannot be left out one by one.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    for key, tie in TIES.items():
        value = getattr(config, key, None)
        if value and (key != "kv_sharing_modes" or "reuse" in value):
            raise RegrowError(f"{name}: blocks cannot be removed, {tie} (config.{key} = {value})")
    owners: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for parameter_name, parameter in block.named_parameters():
            owner = owners.setdefault(id(parameter), index)
            if owner != index:
                raise RegrowError(
                    f"{name}: blocks cannot be removed, blocks {owner} and {index} share the parameter {parameter_name}"
                )
    if is_hollow(model):
        return None
    chain = tuple(map(id, blocks))
    if blocks not in _WATCHED or _WATCHED[blocks][0] != chain:
        _WATCHED[blocks] = chain, _watch_one_token(model, blocks)
    return _WATCHED[blocks][1]


@torch.no_grad()
def _watch_one_token(model: nn.Module, blocks: nn.ModuleList) -> int | None:
    """Send one token through and compare what each block gets with what the blocks before it returned."""
    refusal = f"{type(model).__name__}: blocks cannot be removed"
    made: dict[int, tuple[int, torch.Tensor]] = {}  # id -> block, tensor; held, so that no id is used twice
    states: list[torch.Tensor] = []
    tuples: list[int | None] = []

    def before(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden, others = (args[0], args[1:]) if args else (kwargs.get("hidden_states"), ())
        index = len(states)
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
            raise RegrowError(f"{refusal}, block {index} is not given one hidden state (batch, tokens, size)")
        # Only the first block's input comes from elsewhere.
        # A model of broken weights has NaNs here, which are equal to nothing; its losses tell.
        if states and not torch.equal(states[-1].nan_to_num(), hidden.to(states[-1].device).nan_to_num()):
            raise RegrowError(
                f"{refusal}, what enters block {index} is not what block {index - 1} returned: something happens "
                "between blocks that depends on the block"
            )
        for tensor in tensors_in([others, {key: value for key, value in kwargs.items() if value is not hidden}]):
            if id(tensor) in made:
                raise RegrowError(f"{refusal}, block {index} also reads what block {made[id(tensor)][0]} made")

    def after(block: nn.Module, args: tuple, output: BlockOutput) -> None:
        index = len(states)
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden)
        tuples.append(len(output) if isinstance(output, tuple) else None)
        made.update({id(tensor): (index, tensor) for tensor in tensors_in(output)})

    modes = [(module, module.training) for module in model.modules()]
    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(after) for block in blocks]
    try:
        model.eval()
        with logits_alone(model):
            model(torch.zeros((1, 1), dtype=torch.int64, device=input_device(model)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if len(states) != len(blocks):
        raise RegrowError(f"{refusal}, one forward ran {len(states)} blocks, the model has {len(blocks)}")
    return tuples[0]


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Every tensor of nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
