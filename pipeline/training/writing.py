"""Writing tensors to a safetensors file piece by piece, hashed on the way: no second copy in memory, no second reading.

The file's tensors lie in it back to back, by size of their dtype and then by name, as safetensors' own writer has them.
``Staged`` is a copy in host memory that lies as the file will, so that it can be written while training goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

#: safetensors' names of dtypes.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
#: Bytes that are hashed and written at a time.
PIECE = 8 << 20


def in_order(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Tensors as they lie in a file: those of the widest dtype first, so that each begins at a multiple of its size."""
    return sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))


def size_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the tensors' values."""
    return sum(value.nbytes for value in tensors.values())


def header(tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> bytes:
    """The beginning of the file, padded to a multiple of 8 bytes; ``about`` is its metadata."""
    entries: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, value in in_order(tensors):
        begin, end = end, end + value.nbytes
        entries[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def values(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    """The bytes behind the header, from tensors on any device, a piece at a time."""
    for _, value in in_order(tensors):
        flat = value.detach().contiguous().view(-1)
        step = max(1, PIECE // value.itemsize)
        for begin in range(0, len(flat), step):
            yield memoryview(flat[begin : begin + step].cpu().view(torch.uint8).numpy())


class Staged:
    """A copy of tensors in host memory, page-locked where they are on a GPU: as long as the file's values, in their
    order. It is made once and filled for every save: the tensors' names, shapes and dtypes must stay."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self._bytes = torch.empty(size_of(tensors), dtype=torch.uint8)
        self._locked = any(value.is_cuda for value in tensors.values()) and _lock(self._bytes)
        # Touched once: the first copy is not to wait for the kernel to find the pages.
        self._bytes.zero_()

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the values; when this returns, the tensors may change."""
        begin, devices = 0, set()
        for _, value in in_order(tensors):
            end = begin + value.nbytes
            place = self._bytes[begin:end].view(value.dtype).view(value.shape)
            place.copy_(value.detach(), non_blocking=self._locked)
            begin = end
            if value.is_cuda:
                devices.add(value.device)
        for device in devices:
            torch.cuda.synchronize(device)

    def values(self) -> Iterator[memoryview]:
        """The bytes, a piece at a time."""
        for begin in range(0, len(self._bytes), PIECE):
            yield memoryview(self._bytes[begin : begin + PIECE].numpy())

    def close(self) -> None:
        """Give the memory back."""
        if self._locked:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())
        self._bytes, self._locked = torch.empty(0, dtype=torch.uint8), False


def write(path: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write ``parts`` one behind the other, down to the disk. Returns ``bytes`` and ``sha256`` of the file."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _lock(memory: torch.Tensor) -> bool:
    """Page-lock memory, so that a GPU copies to it by itself; False where that is not allowed: copies are slower then.

    torch's own page-locked memory comes in powers of two: up to twice as much as is asked for.
    """
    return int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0
