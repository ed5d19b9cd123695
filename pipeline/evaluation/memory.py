"""Memory between models: giving back what one held before the next is loaded, whether several fit, what ran out."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch

from pipeline.memory import available_memory

#: The share of the free memory that weights may take where several models stand side by side: the rest is for caches
#: and activations.
SHARE = 0.7
#: How errors speak of too little memory that have no class of their own: torch on a CPU, and what CUDA's libraries say
#: where it is they who ask for some.
NOT_ENOUGH = ("DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def give_back(device: torch.device) -> None:
    """Free what nobody refers to any more, also on a GPU; objects of a model that refer to each other included."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory was not enough, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NOT_ENOUGH)


def fit_together(weights: Iterable[int], device: torch.device) -> bool:
    """Whether models of so many bytes each fit the memory that is free now, on the GPU or, without one, for this
    process on the host."""
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
    return sum(weights) <= SHARE * free
