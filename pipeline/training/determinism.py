"""Deterministic kernels for as long as a block of code runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Have torch take deterministic kernels inside of the block, where ``on``; afterwards all is as it was."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    if on:
        torch.use_deterministic_algorithms(True)
        # It would also fill every new buffer, which DeepSpeed overwrites: for each micro-batch, all its buckets.
        torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
