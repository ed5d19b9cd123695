"""A model's own values computed with in fp32, and its own dtypes again.

Parameters are widened as they are: every bf16 number is an fp32 number. Buffers that are in no file are not: they are
made by the model in the dtype that it is loaded in (a factor on the embeddings, tables of decay), so that widening them
would keep a rounding that the same model, loaded in fp32, does not have. They are made anew instead.
"""

from __future__ import annotations

from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pipeline.model.hollow import without_weights

#: The dtypes that a module's own tensors have in files, by name. Modules that are removed are not kept alive by it.
Stored = WeakKeyDictionary[nn.Module, dict[str, torch.dtype]]


def stored_dtypes(model: nn.Module) -> Stored:
    """The dtype of every parameter and buffer that is saved."""
    stored: Stored = WeakKeyDictionary()
    for module in model.modules():
        own = {**module._parameters, **module._buffers}
        stored[module] = {
            name: tensor.dtype
            for name, tensor in own.items()
            if tensor is not None and name not in module._non_persistent_buffers_set
        }
    return stored


def widen(model: nn.Module, folder: Path, trust_remote_code: bool = False) -> None:
    """Make a model that was loaded from ``folder`` compute in fp32, in place: its values, and fp32 buffers.

    Raises RegrowError when the model does not make its buffers anew.
    """
    model.float()
    fresh = dict(without_weights(folder, torch.float32, None, trust_remote_code).named_buffers())
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            if module._buffers.get(name) is not None:
                module._buffers[name] = fresh[f"{path}.{name}".lstrip(".")].to(module._buffers[name].device)


def narrow(stored: Stored) -> None:
    """Give tensors the dtypes again that they had when ``stored_dtypes`` looked, in place."""
    for module, dtypes in stored.items():
        for name, dtype in dtypes.items():
            if name in module._parameters:
                module._parameters[name].data = module._parameters[name].data.to(dtype)
            else:
                module._buffers[name] = module._buffers[name].to(dtype)
