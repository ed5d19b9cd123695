"""What the weight files of a model folder hold, read from their headers: names, shapes and dtypes, without the data.

Names and layouts of a checkpoint are turned into those of the modules by transformers' own rules. So it can be told
which tensors a model that was loaded in one dtype holds less precisely than its files do, and which it leaves out.
"""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import RegrowError, first_line
from pipeline.model.architecture import AGAIN
from pipeline.model.files import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: safetensors' names of the dtypes that a narrower one may cut; tensors of others are integers, or quantised.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


#: The tables of the causal mask that files of GPT-2's time hold beside the weights; models make their own now.
OLD_MASKS = re.compile(r"\b(attn|attention|crossattention)\.(masked_)?bias$")


@dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint: where it stands, and the parameter that it becomes (or becomes part of).

    ``dtype`` is None where it is none of ``FLOATS``.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    target: str
    converted: bool


@dataclass(frozen=True)
class Shortfall:
    """What a model has less of than its files: dtypes of the tensors that it narrowed, and those that it left out.

    Both by the names that the tensors have in the files. ``held`` is the number of all tensors there.
    """

    narrowed: dict[str, torch.dtype]
    left_out: list[str]
    held: int


def read_headers(model: PreTrainedModel, files: Sequence[Path]) -> dict[str, Entry]:
    """Every tensor of a model's files by its key; ``model`` may be on the meta device.

    Raises RegrowError when a file is damaged.
    """
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [entry for entry in conversions(model) if isinstance(entry, WeightRenaming)]
    makers = converters(model)
    prefix, own = model.base_model_prefix, model.state_dict()
    entries = {}
    for file in files:
        for key, shape, dtype in _header(file):
            target, pattern = rename_source_key(key, renamings, makers, prefix, own)
            if target not in own and key in own:
                target, pattern = rename_source_key(key, [], [], prefix, own)
            entries[key] = Entry(file, shape, dtype, target, pattern is not None)
    return entries


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """The dtype that most values of a model's files are in; bf16 where none is in one of ``FLOATS``."""
    values: Counter[torch.dtype] = Counter()
    for file in files:
        for _, shape, dtype in _header(file):
            if dtype is not None:
                values[dtype] += math.prod(shape)
    return max(values, key=values.__getitem__, default=torch.bfloat16)


def named_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of weights by its name in torch; RegrowError where it is none of ``FLOATS``."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in FLOATS.values():
        known = ", ".join(str(one).removeprefix("torch.") for one in FLOATS.values())
        raise RegrowError(f"dtype {str(dtype).removeprefix('torch.')}: weights are loaded in one of {known}")
    return found


def is_old_mask(name: str) -> bool:
    """Whether a tensor of a file without a place in its model is a mask that the model makes itself."""
    return OLD_MASKS.search(name) is not None


def conversions(model: PreTrainedModel) -> list[Any]:
    """How transformers turns the names and layouts of this model's checkpoints into those of its modules."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return get_model_conversion_mapping(model)


def converters(model: PreTrainedModel) -> list[Any]:
    """Those of them that make other tensors of the files' tensors."""
    from transformers.core_model_loading import WeightConverter

    return [entry for entry in conversions(model) if isinstance(entry, WeightConverter)]


def shortfall(model: PreTrainedModel, folder: Path) -> Shortfall:
    """What ``model``, loaded from ``folder``, has lost of its files.

    A tensor is narrowed where its dtype in the model cannot hold every value of that in the file. Tables that models
    compute now, and whose place old files still have (rotary frequencies, masks), are not missed.
    """
    entries = read_headers(model, weight_files(folder))
    own = model.state_dict()
    computed = {name.rpartition(".")[2] for name, _ in model.named_buffers() if name not in own}
    narrowed, left_out = {}, []
    for key, entry in entries.items():
        held = own.get(entry.target)
        if held is not None:
            if entry.dtype is not None and torch.promote_types(entry.dtype, held.dtype) != held.dtype:
                narrowed[key] = entry.dtype
        elif not entry.converted and key.rpartition(".")[2] not in computed and not is_old_mask(key):
            left_out.append(key)
    return Shortfall(narrowed, left_out, len(entries))


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype | None]]:
    """Key, shape and dtype (None: none of ``FLOATS``) of each tensor of a file."""
    if file.suffix != ".safetensors":
        # A pickle of tensors; its data stays in the file, where its format lets it.
        try:
            weights = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:  # whatever the bytes of a pickle lead to
            raise RegrowError(f"{file}: damaged or unreadable ({first_line(error)}); {AGAIN}") from error
        for key, value in weights.items():
            if not isinstance(value, torch.Tensor):
                raise RegrowError(
                    f"{file}: {key!r} in it is no tensor: not the weights of a Hugging Face model; save them with "
                    "save_pretrained"
                )
            yield key, tuple(value.shape), value.dtype if value.dtype in FLOATS.values() else None
        return
    with opened(file) as tensors:
        for key in tensors.keys():  # noqa: SIM118 (it has no iterator)
            part = tensors.get_slice(key)
            yield key, tuple(part.get_shape()), FLOATS.get(part.get_dtype())


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, read and not mapped: pages of a mapping count as memory of the process until it ends."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu", backend="pread") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise RegrowError(f"{file}: damaged or unreadable ({first_line(error)}); {AGAIN}") from error
