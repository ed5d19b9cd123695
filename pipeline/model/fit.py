"""Whether a folder's weights are those of its model: by the names, shapes and dtypes in the files' headers.

Headers are read and no values, so that it takes no time. Only what is sure is refused: names and layouts are turned
into the modules' by transformers' own rules, and what it forgives is forgiven: tied weights that stand once, tables
that are computed now, tensors that a family's files have besides.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pipeline.errors import RegrowError
from pipeline.model.architecture import DEQUANTISE
from pipeline.model.headers import Entry, converters, is_old_mask, read_headers

#: So many tensors that do not fit are named.
NAMED = 3
#: Conversions that keep every value that they are given.
KEEPING = {"MergeModulelist", "Concatenate", "Transpose"}


def require_fit(model: Any, folder: Path, files: Sequence[Path]) -> None:
    """RegrowError naming tensors of the ``files`` in ``folder`` that are not those of ``model``, which may be on the
    meta device: of another shape, missing, without a place in it, or quantised.

    Pickles that are no zip are not looked at: they would have to be read whole.
    """
    if any(file.suffix != ".safetensors" and not zipfile.is_zipfile(file) for file in files):
        return
    entries, own = read_headers(model, files), model.state_dict(keep_vars=True)
    _require_floats(entries, own)
    misfits = [
        *_misshapen(entries, own),
        *_made_of_too_few_or_many(model, entries, own),
        *_missing_or_left_over(model, entries, own),
    ]
    if misfits:
        more = f" (and {len(misfits) - NAMED:,} more)" if len(misfits) > NAMED else ""
        raise RegrowError(
            f"{folder}: weights and config.json do not fit: {'; '.join(misfits[:NAMED])}{more}. Take the config.json "
            "of these weights, or fetch the model again, whole"
        )
    held = sum(math.prod(entry.shape) for entry in entries.values())
    needed = sum(parameter.numel() for parameter in model.parameters())
    if held < needed:
        raise RegrowError(
            f"{folder}: its weights are {held:,} values, and the model of its config.json has {needed:,}: some are "
            "missing; fetch the model again, whole"
        )


def _require_floats(entries: Mapping[str, Entry], own: Mapping[str, Any]) -> None:
    for key, entry in entries.items():
        wanted = own.get(entry.target)
        if isinstance(wanted, torch.nn.Parameter) and wanted.is_floating_point() and entry.dtype is None:
            raise RegrowError(
                f"{entry.file}: {key} is quantised, to whole numbers or to floats of eight bits or fewer; {DEQUANTISE}"
            )


def _misshapen(entries: Mapping[str, Entry], own: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} has shape {list(entry.shape)}, and {list(own[entry.target].shape)} is wanted"
        for key, entry in sorted(entries.items())
        if not entry.converted
        and isinstance(own.get(entry.target), torch.Tensor)
        and tuple(own[entry.target].shape) != entry.shape
    ]


def _made_of_too_few_or_many(model: Any, entries: Mapping[str, Entry], own: Mapping[str, Any]) -> list[str]:
    """Tensors that are made of several (an expert's of each one's), where none of these may get lost."""
    made = {
        converter.target_patterns[0]
        for converter in converters(model)
        if len(converter.target_patterns) == 1
        and {type(operation).__name__ for operation in converter.operations} <= KEEPING
    }
    values: Counter[str] = Counter()
    for entry in entries.values():
        if entry.converted and entry.target in own and entry.target.endswith(tuple(made)):
            values[entry.target] += math.prod(entry.shape)
    return [
        f"{name} is made of {count:,} values, and {own[name].numel():,} are wanted"
        for name, count in sorted(values.items())
        if count != own[name].numel()
    ]


def _missing_or_left_over(model: Any, entries: Mapping[str, Entry], own: Mapping[str, Any]) -> list[str]:
    given = {entry.target for entry in entries.values()}
    # A tied weight is there where any of its names is.
    there = {id(own[name]) for name in given & own.keys()}
    tied: dict[str, set[str]] = {}
    for name, source in model.all_tied_weights_keys.items():
        tied.setdefault(source, {source}).add(name)
    given |= {name for names in tied.values() if names & given for name in names}
    # Of a tensor that is split only the first part's name is known here.
    parts = [
        part
        for converter in converters(model)
        if len(converter.target_patterns) > 1
        for part in converter.target_patterns
    ]
    missing = {
        name
        for name, value in own.items()
        if name not in given and id(value) not in there and not any("\\" in part or part in name for part in parts)
    }
    left_over = {
        key: entry.target
        for key, entry in entries.items()
        if entry.target not in own and not entry.converted and not is_old_mask(key)
    }
    told = SimpleNamespace(missing_keys=missing, unexpected_keys=set(left_over.values()))
    model._adjust_missing_and_unexpected_keys(told)
    kept = sorted(key for key, target in left_over.items() if target in told.unexpected_keys)
    return [
        *(f"{name} is missing" for name in sorted(told.missing_keys)),
        *(f"{key} has no place in the model" for key in kept),
    ]
