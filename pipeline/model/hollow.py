"""A hollow model: a folder's model without its weights, but with the buffers that are in no file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import RegrowError
from pipeline.model.architecture import auto_class, read_config, why_not_made
from pipeline.model.outputs import return_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def without_weights(folder: Path, dtype: torch.dtype, kernel: str | None, trust_remote_code: bool) -> Any:
    """The folder's model on the meta device, but for the buffers that no file holds: these are made on the CPU."""
    config = read_config(folder, trust_remote_code)
    loader = auto_class(config)
    try:
        with torch.device("meta"):
            model = loader.from_config(
                config, dtype=dtype, attn_implementation=kernel, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        why = why_not_made(config, error)
        raise RegrowError(f"model {folder}: cannot be loaded ({type(error).__name__}: {why})") from error
    make_buffers(model)
    return_logits(model)
    return model.eval()


def make_buffers(model: PreTrainedModel) -> None:
    """Fill the buffers that are in no file as transformers does when it loads a model whole: by its own initialising.

    RegrowError names a buffer that is not made so (code of the model's own may forget it).
    """
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # to be left alone
    made = []
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            if module._buffers.get(name) is None:
                continue
            module._is_hf_initialized = False
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
            made.append((f"{path}.{name}", module, name, module._buffers[name], module._buffers[name]._version))
    model.initialize_weights()
    for path, module, name, empty, version in made:
        if module._buffers[name] is empty and empty.numel() and empty._version == version:
            raise RegrowError(
                f"{type(model).__name__}: its buffer {path.lstrip('.')} is in no file, and the model does not make it "
                "anew when it is loaded: transformers leaves arbitrary numbers there; have its _init_weights make it"
            )


def buffers_to(module: nn.Module, device: torch.device, recurse: bool = True) -> None:
    """Move buffers by replacing them in their modules, so that those that were there can be put back."""
    for part in module.modules() if recurse else [module]:
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
