"""A model in a folder's shape with new weights: what pruning and training are worth is seen beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.errors import RegrowError
from pipeline.model.architecture import auto_class, read_config, why_not_made
from pipeline.model.load import attention_kernel
from pipeline.model.outputs import return_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def new_weights(
    folder: Path,
    seed: int,
    *,
    dtype: str | torch.dtype = torch.bfloat16,
    attention: str = "auto",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The folder's model in evaluation mode, its weights drawn as its family begins training: by its own initialising.

    They are drawn on the CPU, whatever the device: the same for a seed with the same torch and transformers. The random
    state of the process stays as it is. Raises RegrowError when the model cannot be made.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    device, config = torch.device(device), read_config(folder, trust_remote_code)
    kernel = attention_kernel(attention, device, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = auto_class(config).from_config(
                config, dtype=dtype, attn_implementation=kernel, trust_remote_code=trust_remote_code
            )
        except Exception as error:
            why = why_not_made(config, error)
            raise RegrowError(f"model {folder}: cannot be made ({type(error).__name__}: {why})") from error
    return_logits(model)
    return model.eval().to(device)
