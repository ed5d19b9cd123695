"""Attention within documents: rows of several documents, read as if each document stood alone.

transformers finds the documents of a row by position ids that restart, and keeps them apart in the mask of every kind
of layer (sliding windows too), as long as it is given neither a mask nor a cache. Flash attention takes no mask: there
the rows are laid end to end in one, and the documents' borders go to its kernel for sequences of unequal length.

Some families make their masks without position ids (OPT), or mix tokens by other means than attention (Mamba), and
would let documents see each other without a word. So a model is probed before it is trained this way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import masking_utils

from pipeline.errors import RegrowError
from pipeline.model.hooks import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Attention implementations that take borders of documents instead of a mask.
FLASH = ("flash_attention_2", "flash_attention_3")
#: Largest difference between a document's logits in a row and alone, relative to the largest logit. In half precision
#: 30 blocks differ by 2e-2, as products of other shapes round otherwise; learned positions that are wrong, by 0.3.
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.1
#: The probe's documents: two rows, and a document of one token among them.
PROBE = (np.array([0, 9, 10, 24], dtype=np.int32), np.array([0, 19, 24], dtype=np.int32))


def attention_of(model: PreTrainedModel) -> str:
    """The attention implementation that a Hugging Face model runs with: sdpa, eager, flash_attention_2, ..."""
    return model.config.get_text_config()._attn_implementation


def document_arguments(input_ids: torch.Tensor, documents: Sequence[np.ndarray], attention: str) -> dict[str, Any]:
    """A model's keyword arguments for rows (rows, T) int64 whose documents must not see each other.

    ``documents`` holds for each row where documents begin in it: cu_seqlens, int32, 0 ... T, rising. Position ids
    restart with each. Call the model with ``use_cache=False``; under flash attention its logits come as one row,
    (1, rows x T, vocabulary): ``.view(rows, T, -1)`` gives them back their shape. Tensors go to input_ids' device.
    """
    rows, length = input_ids.shape
    # A row's end is a border too: the next row's first document begins there.
    borders = np.concatenate([cu[:-1] + row * length for row, cu in enumerate(documents)] + [[rows * length]])
    lengths = np.diff(borders)
    positions = torch.from_numpy(np.arange(rows * length) - np.repeat(borders[:-1], lengths))
    positions = on_its_way(positions, input_ids.device)
    if attention not in FLASH:
        return {"input_ids": input_ids, "position_ids": positions.view(rows, length)}
    cu_seq_lens = on_its_way(torch.from_numpy(borders.astype(np.int32)), input_ids.device)
    return {
        "input_ids": input_ids.view(1, -1),
        "position_ids": positions.view(1, -1),
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        # A bound is wanted, and blocks that are compiled would be so anew with every other number.
        "max_length_q": length,
        "max_length_k": length,
    }


@contextlib.contextmanager
def documents_known(documents: Sequence[np.ndarray] | None, attention: str, device: torch.device) -> Iterator[None]:
    """Within the context a model's forward is told where documents begin in its rows; None: a row is one text.

    transformers looks for itself at the positions of every forward, and waits for the device to do so: the next
    micro-batch's work would be laid before it when the last one's is done, and not while it is being done.
    """
    numbers = None
    if documents is not None and attention not in FLASH and any(len(cu) > 2 for cu in documents):
        rows = [np.repeat(np.arange(len(cu) - 1), np.diff(cu)) for cu in documents]
        numbers = on_its_way(torch.from_numpy(np.stack(rows)), device)
    found = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: numbers
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found


def on_its_way(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for it: from page-locked memory a GPU fetches it by itself."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def require_document_attention(model: PreTrainedModel) -> float:
    """Probe a model, in evaluation mode and whole on its device: do documents of a row stay apart?

    Two things are asked of it, on random tokens. The gradient of a document's logits is exactly zero in every token
    of other documents, in any dtype: a masked weight is zero, not small. And each document's logits are those that it
    has alone, to rounding: returned is the largest difference, relative to the largest logit.

    Raises RegrowError where either does not hold, or the model does not take position ids.
    """
    name = f"data.attention within: {type(model).__name__} with attention {attention_of(model)}"
    advice = "use data.attention across, or another model.attention"
    rows, length = len(PROBE), int(PROBE[0][-1])
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(input_device(model))
    embedded: list[torch.Tensor] = []

    def watch(module: nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = model.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            arguments = document_arguments(ids, PROBE, attention_of(model))
            logits = model(**arguments, use_cache=False).logits.view(rows, length, -1)
            last = sum(logits[row, cu[-2] :].float().pow(2).sum() for row, cu in enumerate(PROBE))
            (gradient,) = torch.autograd.grad(last, embedded[0])
    except TypeError as error:
        raise RegrowError(f"{name} does not take position ids ({error}); {advice}") from error
    finally:
        handle.remove()
    felt = gradient.view(rows, length, -1).abs().amax(dim=-1)
    for row, cu in enumerate(PROBE):
        if not felt[row, cu[-2] :].min() > 0:
            raise RegrowError(f"{name} cannot be probed: its logits do not depend on its tokens; {advice}")
        if not felt[row, : cu[-2]].max() == 0:
            raise RegrowError(f"{name} lets a document see the one before it in its row; {advice}")

    largest, difference = float(logits.detach().abs().max()), 0.0
    with torch.no_grad():
        for row, cu in enumerate(PROBE):
            for begin, end in pairwise(cu):
                alone = model(ids[row : row + 1, begin:end], use_cache=False).logits[0].float()
                difference = max(difference, float((logits[row, begin:end].float() - alone).abs().max()))
    allowed = TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE
    if not difference / largest <= allowed:
        raise RegrowError(
            f"{name} gives a document other logits in a row than alone: they differ by {difference / largest:.2e} of "
            f"the largest, allowed is {allowed:g}; {advice}"
        )
    return difference / largest
