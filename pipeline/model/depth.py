"""What a model's config says of single blocks, and how it is told of fewer of them.

A kept block must stay what it was: its attention type, its window, its experts follow its index in the longer model,
not its new place. Lists with an entry for each block are cut; lists of indices, counts of leading blocks and steps are
rewritten for the new places. What a config says only as a rule of the block's place (every sixth block ...) is found
out by building the model from the new config, without memory for its weights, and comparing each of its blocks with
the kept one: a config that would describe another model is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import RegrowError, first_line
from pipeline.model.structure import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Lists of block indices; an index of a removed block leaves the list.
INDEX_LISTS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers")
#: Numbers of leading blocks that differ from those behind them.
LEADING = ("first_k_dense_replace", "max_window_layers", "moe_layer_start_index", "num_dense_layers")
#: Attributes of modules that hold a block's place, or the number of blocks.
PLACES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
#: Families whose cache is a class of their own, which no model without attention breaks.
OWN_CACHE = ("minimax",)
#: How many differences an error names.
NAMED = 3


def per_block_lists(config: PreTrainedConfig, total: int) -> dict[str, list[Any]]:
    """The config's lists with one entry for each block, by name."""
    plain = config.to_dict()
    return {
        name: list(value)
        for name, value in plain.items()
        # A list of end tokens, say, may be as long as a small model has blocks.
        if isinstance(value, list | tuple)
        and len(value) == total
        and name not in INDEX_LISTS
        and name != "architectures"
        and not name.endswith("token_id")
    }


def config_values(config: PreTrainedConfig, kept: Sequence[int], total: int) -> dict[str, Any]:
    """What to set in a config of ``total`` blocks so that it speaks of the ``kept`` ones, by the name of the value."""
    place = {index: number for number, index in enumerate(kept)}
    plain = config.to_dict()
    values: dict[str, Any] = {"num_hidden_layers": len(kept)}
    values |= {name: [value[i] for i in kept] for name, value in per_block_lists(config, total).items()}
    for name in INDEX_LISTS:
        if isinstance(plain.get(name), list | tuple):
            values[name] = [place[index] for index in plain[name] if index in place]
    for name in LEADING:
        # A number beyond the last block (Qwen2's default window) says that all blocks lead, and will go on doing so.
        if isinstance(plain.get(name), int) and plain[name] <= total:
            values[name] = sum(index < plain[name] for index in kept)
    step = plain.get("decoder_sparse_step")
    if isinstance(step, int) and step > 1 and plain.get("mlp_only_layers") is not None:
        # Every step-th block has experts: said instead as the list of blocks that have none.
        values["decoder_sparse_step"] = 1
        values["mlp_only_layers"] = [
            number for index, number in place.items() if index in plain["mlp_only_layers"] or (index + 1) % step
        ]
    if isinstance(plain.get("attention_layers"), list) and "attention_types" in plain:
        values["attention_types"] = [[values["attention_layers"], 1]]  # GPT-Neo's short form of the same list
    if isinstance(plain.get("per_layer_config"), dict):
        values["per_layer_config"] = {
            place[int(index)]: value for index, value in plain["per_layer_config"].items() if int(index) in place
        }
    return values


def set_values(config: PreTrainedConfig, values: dict[str, Any]) -> None:
    """Set what ``config_values`` found."""
    if "per_layer_config" in values:
        config.per_layer_config = None  # which is checked against the number of blocks while that changes
    for name, value in values.items():
        setattr(config, name, value)


def shorten(
    model: PreTrainedModel, kept: Sequence[int], total: int
) -> tuple[dict[str, Any], list[list[tuple[str, str, Any]]]]:
    """What must change so that a model of ``total`` blocks becomes one of the ``kept`` ones; changes nothing.

    Returns the values of its config, and the attributes to set in its modules as (module's path, attribute, value):
    one list for each kept block, paths counted from the block, and a last list for the rest of the model.

    Raises RegrowError where the new config would describe other blocks than those kept, and where what is left could
    not generate.
    """
    name = type(model).__name__
    values = config_values(model.config.get_text_config(), kept, total)
    config = deepcopy(model.config)
    set_values(config.get_text_config(), values)
    if _counts_tokens(model.config.get_text_config()) and not _counts_tokens(config.get_text_config()):
        raise RegrowError(
            f"{name}: these blocks cannot be removed, no attention with keys would be left, by which transformers' "
            "cache counts its tokens: what is left could not generate; keep one such block "
            f"({', '.join(str(index) for index in range(total) if index not in kept)} would go)"
        )
    dense, short = _built(model, deepcopy(model.config)), _built(model, config)
    lists = find_blocks(dense), find_blocks(short)
    long_blocks, short_blocks = map(list, lists)
    for blocks in lists:
        del blocks[:]  # what is left is the rest of the model, which must be the same in both
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    gone = tuple(set(types) - set(values.get("layer_types", types)))
    changes = []
    wrong = []
    pairs = [(f"block {index}: ", long_blocks[index], short_blocks[number]) for number, index in enumerate(kept)]
    for where, before, after in [*pairs, ("", dense, short)]:
        follows: list[tuple[str, str, Any]] = []
        for path, attribute, was, becomes in _differences(before, after):
            cut = isinstance(was, list | tuple) and len(was) == total and becomes == type(was)(was[i] for i in kept)
            count = attribute in COUNTS and (was, becomes) == (total, len(kept))
            # What a model as a whole remembers of its blocks: whether some have a window, which is the first to share.
            summary = not where and "layer" in attribute and isinstance(was, int) and isinstance(becomes, int)
            if not where and _only_unused(attribute, was, becomes, gone):
                continue
            if attribute in PLACES or cut or count or summary:
                follows.append((path, attribute, becomes))
            else:
                wrong.append(f"{where}{path + '.' if path else ''}{attribute} {was} would become {becomes}")
        changes.append(follows)
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise RegrowError(
            f"{name}: these blocks cannot be removed, its config has no way to describe what is left; "
            f"{'; '.join(wrong[:NAMED])}{more}"
        )
    return values, changes


def _counts_tokens(config: PreTrainedConfig) -> bool:
    """Whether transformers' cache for such a model, or the family's own, knows how many tokens it holds."""
    from transformers import DynamicCache

    if config.model_type in OWN_CACHE or not getattr(config, "layer_types", None):
        return True
    try:
        DynamicCache(config=config).get_seq_length()
    except ValueError:
        return False
    return True


def _only_unused(attribute: str, was: object, becomes: object, gone: tuple[str, ...]) -> bool:
    """Rotary frequencies are kept for each type of layer that there is, under the names of a set in any order."""
    if isinstance(was, list) and isinstance(becomes, list) and attribute == "layer_types":
        return sorted(becomes) == sorted(item for item in was if item not in gone)
    return becomes == "nothing" and attribute.startswith(gone)


def _built(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the same class from a config, on the meta device: structure without memory."""
    from transformers.initialization import no_init_weights

    try:
        # As a saved config is read: some put their lists right, or wrong, when they are made.
        config = type(config).from_dict(json.loads(config.to_json_string(use_diff=False)))
        with torch.device("meta"), no_init_weights():
            return type(model)(config)
    except Exception as error:
        raise RegrowError(
            f"{type(model).__name__}: blocks cannot be removed, it cannot be built from its config "
            f"({type(error).__name__}: {first_line(error)}); where adapters or wrappers were put on it, remove blocks "
            "before that"
        ) from error


def _differences(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, str, Any, Any]]:
    """Where two modules differ: (path of the submodule, what, in the one, in the other)."""
    old, new = _features(before), _features(after)
    for path, what in sorted(old.keys() | new.keys()):
        was, becomes = old.get((path, what), "nothing"), new.get((path, what), "nothing")
        if was != becomes:
            yield path, what, was, becomes


def _features(module: nn.Module) -> dict[tuple[str, str], Any]:
    """Classes, shapes of weights, and plain attributes of a module and all its submodules."""
    internal = nn.Module().__dict__.keys()
    features: dict[tuple[str, str], Any] = {}
    for path, part in module.named_modules():
        features[path, "class"] = type(part).__name__
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            features[path, name] = f"of shape {tuple(tensor.shape)}"
        for name, value in vars(part).items():
            if name not in internal and _is_plain(value):
                features[path, name] = value
    return features


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
