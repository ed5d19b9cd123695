"""A model folder's files of weights before they are loaded: are they whole, are they all there, are they numbers?

Whether their tensors are those of the model is told by ``fit``.

Headers and sizes are read, which takes no time whatever the weights' size: a download that was cut off, a pointer in
the place of a file, a shard that is missing. Values are read where they are few.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import RegrowError
from pipeline.files import hash_json, read_json
from pipeline.model.architecture import AGAIN

#: How a file begins that Git LFS has not fetched.
POINTER = b"version https://git-lfs"
#: A header larger than this is none; the format's own limit.
LARGEST_HEADER = 100_000_000


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load: safetensors before torch's .bin, a single file before an index.

    Raises RegrowError when there are none, or when an index names a file that is not there.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            files = [folder / name for name in sorted(set(_weight_map(index).values()))]
            missing = [path for path in files if not path.is_file()]
            if missing:
                raise RegrowError(f"{missing[0]}: named by {index.name} and not there; fetch the model again")
            return files
    parts = sorted(path.name for path in [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if parts:
        raise RegrowError(
            f"{folder}: neither a single file of weights nor an index (model.safetensors.index.json) of {parts[0]}"
            f"{', ...' if parts[1:] else ''}; fetch the model again, whole"
        )
    raise RegrowError(f"{folder}: no weights (model.safetensors, or its parts and their index)")


def weights_hash(folder: Path, hash_of: Callable[[Path], str]) -> str:
    """sha256 of the hashes of the folder's files of weights by name: what tells one model's weights from another's."""
    return hash_json({path.name: hash_of(path) for path in weight_files(folder)})


def require_whole(folder: Path) -> list[Path]:
    """The files of weights in ``folder``, after a look at their headers and sizes.

    Raises RegrowError naming a file that is missing, cut off or a pointer, or a tensor that the index has elsewhere.
    """
    files = weight_files(folder)
    for path in files:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise RegrowError(f"{path}: a pointer of Git LFS and not the weights; fetch them: git lfs pull")
    if files[0].suffix == ".bin":
        for path in files:
            _require_whole_archive(path)
        return files
    headers = {path.name: read_header(path) for path in files}
    index = folder / "model.safetensors.index.json"
    if files[0].name != "model.safetensors":
        for name, file in _weight_map(index).items():
            if name not in headers[file]:
                raise RegrowError(f"{index}: says that {name} is in {file}, which does not hold it; fetch both again")
    return files


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's tensors by name: dtype, shape, offsets. Raises RegrowError where the file is not as long as
    its header says, or has none.

    The format: 8 bytes with the header's length, the header as JSON, the tensors' bytes
    (https://huggingface.co/docs/safetensors).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if 0 < length <= min(size, LARGEST_HEADER) else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise RegrowError(f"{path}: not a safetensors file, or cut off ({size:,} bytes); fetch it again")
    header.pop("__metadata__", None)
    whole = 8 + length + max((_end(path, name, entry) for name, entry in header.items()), default=0)
    if size != whole:
        raise RegrowError(f"{path}: {size:,} bytes, and its header says {whole:,}: cut off or damaged; fetch it again")
    return header


def _end(path: Path, name: str, entry: Any) -> int:
    """Where the bytes of a header's entry end; RegrowError where that is not told."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)):
        raise RegrowError(
            f"{path}: its header does not say where the bytes of {name} are ({json.dumps(entry)[:80]}); it is damaged, "
            "or no safetensors file: fetch it again"
        )
    return offsets[1]


def require_finite_files(files: Iterable[Path]) -> None:
    """RegrowError naming a tensor of these safetensors files that is not made of numbers; all values are read."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as tensors:
            require_finite(((name, tensors.get_tensor(name)) for name in tensors.keys()), path)  # noqa: SIM118


def require_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: Path | str) -> None:
    """RegrowError naming the first of the (name, tensor) of the model in ``where`` that is not made of numbers."""
    name = not_finite(tensors)
    if name is not None:
        raise RegrowError(
            f"model {where}: {name} has values that are not finite (NaN or infinite): the file is damaged, or the "
            "training that wrote it diverged; fetch it again, or take another checkpoint"
        )


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Name of the first tensor with a value that is not finite; None where there is none. Those without memory pass."""
    for name, tensor in tensors:
        if tensor.is_meta:
            continue
        # Floats of eight bits do not know the question.
        values = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
        if not torch.isfinite(values).all():
            return name
    return None


def _weight_map(index: Path) -> dict[str, str]:
    held = read_json(index, AGAIN)
    names = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise RegrowError(f"{index}: no weight_map in it; fetch the model again")
    return names


def _require_whole_archive(path: Path) -> None:
    """torch's format is a zip, whose list of contents stands at its end; older files are pickles, which do not tell."""
    with path.open("rb") as file:
        begins_as_zip = file.read(2) == b"PK"
    if begins_as_zip and not zipfile.is_zipfile(path):
        raise RegrowError(f"{path}: cut off ({path.stat().st_size:,} bytes); fetch it again")
