"""Ids as people have them: taken where their meaning is plain, refused with the line of code that makes them where not.

What is taken: a tensor (T,), (B, T) or (N, B, T); an array or lists of numbers of such shapes; what a tokenizer
returns, where nothing of it is padding; and anything that gives these one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.model.hooks import is_hollow
from pipeline.model.structure import require_model

#: One batch: ids (B, T), a sequence of ids (T,), or a tokenizer's output that holds either.
Batch: TypeAlias = torch.Tensor | Mapping[str, Any] | Sequence[int] | Sequence[Sequence[int]]
#: What a notebook may pass: a batch, or several.
Batches: TypeAlias = Batch | Iterable[Batch]
#: How ids are made of texts.
TOKENISE = 'batches = [tokenizer(text, return_tensors="pt").input_ids for text in texts]'
#: How batches of several lengths become batches of one.
CUT = "batches = [ids[:, :128] for ids in batches if ids.shape[1] >= 128]"


def id_batches(
    model: PreTrainedModel, batches: Batches, *, shortest: int = 2, one_length: bool = False
) -> list[torch.Tensor]:
    """What was passed as batches of ids (B, T) int64 on the CPU; ``shortest`` is the least T.

    With ``one_length`` T must be the same in all. Raises RegrowError on a model that cannot be run; on text, padding,
    and whatever else is no ids, with the line of code that makes them; where nothing was passed; and on ids that the
    model has no embedding for.
    """
    require_model(model)
    if is_hollow(model):
        raise RegrowError("model: its weights are on the meta device, which holds none; load_model(...) reads them")
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    found = [_batch(item, f"batch {number}") for number, item in enumerate(_items(batches))]
    if not found:
        used = "; a generator gives its batches once: keep them, batches = list(...)"
        raise RegrowError(f"no batch: ids (sequences, tokens) are wanted{used * isinstance(batches, Iterator)}")
    for number, batch in enumerate(found):
        _require_size(batch, f"batch {number}", shortest)
        _require_embedded(batch, f"batch {number}", rows)
    lengths = sorted({batch.shape[1] for batch in found})
    if one_length and len(lengths) > 1:
        shown = f"{', '.join(map(str, lengths[:3]))}{', ...' * (len(lengths) > 3)}"
        raise RegrowError(f"batches: sequences of one length are wanted, got {shown} tokens; cut them: {CUT}")
    return found


def require_ids(ids: object, name: str) -> torch.Tensor:
    """The ids; RegrowError, with the ``name``, unless this is a tensor of ids (sequences, tokens)."""
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or not _whole(ids):
        found = f"{tuple(ids.shape)} of {ids.dtype}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise RegrowError(
            f"{name}: ids (sequences, tokens) of int64 are wanted, got {found}; "
            'tokenizer(text, return_tensors="pt").input_ids gives them'
        )
    return ids


def _items(batches: object) -> Iterable[object]:
    """The batches that were passed, none of them looked into."""
    if isinstance(batches, str | bytes):
        raise RegrowError(f"batches: ids are wanted, got a text; {TOKENISE}")
    if isinstance(batches, torch.Tensor | np.ndarray):
        return list(batches) if batches.ndim == 3 else [batches]
    if isinstance(batches, Mapping):
        return [batches]
    if not isinstance(batches, Iterable):
        raise RegrowError(f"batches: ids (sequences, tokens) are wanted, got {type(batches).__name__}; {TOKENISE}")
    found = list(batches)
    return [found] if found and all(isinstance(entry, int) for entry in found) else found


def _batch(item: object, name: str) -> torch.Tensor:
    if isinstance(item, str | bytes):
        raise RegrowError(f"{name}: ids are wanted, got a text; {TOKENISE}")
    if isinstance(item, Mapping):
        return _of_tokenizer(item, name)
    if isinstance(item, Sequence) and len(item) == 1 and isinstance(item[0], torch.Tensor):
        item = item[0]  # a TensorDataset's
    if isinstance(item, Sequence) and not any(isinstance(entry, torch.Tensor | str) for entry in item):
        item = _tensor(item, name)
    if isinstance(item, np.ndarray):
        item = _tensor(item, name)
    if isinstance(item, torch.Tensor) and item.ndim == 1:
        item = item[None]
    return require_ids(item, name).detach().to("cpu", torch.int64)


def _of_tokenizer(output: Mapping[str, Any], name: str) -> torch.Tensor:
    if "input_ids" not in output:
        held = ", ".join(map(str, list(output)[:5])) or "nothing"
        raise RegrowError(f"{name}: no input_ids in it, but {held}; {TOKENISE}")
    ids, mask = _batch(output["input_ids"], name), output.get("attention_mask")
    if mask is not None and not bool((torch.as_tensor(mask) != 0).all()):
        raise RegrowError(
            f"{name}: its attention_mask has zeros, so that some of its tokens are padding, which would be judged as "
            f"text; tokenise without it, text by text: {TOKENISE}"
        )
    return ids


def _tensor(numbers: Sequence[Any] | np.ndarray, name: str) -> torch.Tensor:
    try:
        made = torch.as_tensor(numbers)
    except (TypeError, ValueError):
        raise RegrowError(
            f"{name}: ids (sequences, tokens) are wanted, got a {type(numbers).__name__} that is no table of whole "
            "numbers; where sequences have several lengths, give each as a batch of its own"
        ) from None
    return made if made.numel() else made.long()  # of no numbers the dtype says nothing


def _require_size(batch: torch.Tensor, name: str, shortest: int) -> None:
    if not len(batch) or batch.shape[1] < shortest:
        raise RegrowError(
            f"{name}: has {len(batch)} sequences of {batch.shape[1]} tokens; one of {shortest} at least is wanted"
        )


def _require_embedded(batch: torch.Tensor, name: str, rows: int) -> None:
    low, high = int(batch.min()), int(batch.max())
    if low < 0 or high >= rows:
        raise RegrowError(
            f"{name}: ids from {low} to {high}, and the model has embeddings for 0 to {rows - 1}; is this its "
            "tokenizer?"
        )


def _whole(ids: torch.Tensor) -> bool:
    """Whether these are whole numbers; a mask of truth values is none."""
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
