"""The self-test of pruning: three ways to the same logits, with and without a KV cache.

A dense model with blocks skipped, the same model with those blocks removed, and the removed one saved and reloaded
must agree. It catches what depth pruning usually breaks: cache slots of renumbered blocks, attention types that slip
by a position, weights that a loader fills in at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import RegrowError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Largest difference of fp32 logits between a skipped and a removed block, relative to the largest logit.
TOLERANCE = 1e-5
#: The same between a forward with and without a KV cache, whose sums run in another order.
CACHE_TOLERANCE = 1e-3
#: The most that a cache may move logits where the dense model's own moves them by more than that.
LARGEST_CACHE_TOLERANCE = 2e-2
#: Families that must be told where a token stands: their cache counts its tokens by the first block, and finds none
#: where that is one of linear attention. generate() tells every model.
TOLD_POSITIONS = {"minimax"}


def probe_ids(vocabulary: int, rows: int = 2, length: int = 24) -> torch.Tensor:
    """Fixed pseudo-random ids (rows, length) int64, the same for every model of a vocabulary."""
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def full_logits(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """fp32 logits (rows, T, vocabulary) of one forward without a cache, on the CPU."""
    return model(input_ids.to(model.device), use_cache=False).logits.float().cpu()


@torch.no_grad()
def cached_logits(model: PreTrainedModel, input_ids: torch.Tensor, prefill: int = 16) -> torch.Tensor:
    """fp32 logits (rows, T, vocabulary) through the KV cache: a prefill of ``prefill`` tokens, then one by one."""
    input_ids = input_ids.to(model.device)
    out = model(input_ids[:, :prefill], use_cache=True)
    pieces = [out.logits]
    told = model.config.get_text_config().model_type in TOLD_POSITIONS
    for position in range(prefill, input_ids.shape[1]):
        where = {"position_ids": torch.full((1, 1), position, device=model.device)} if told else {}
        out = model(input_ids[:, position : position + 1], past_key_values=out.past_key_values, use_cache=True, **where)
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1).float().cpu()


def cache_tolerance(model: PreTrainedModel, input_ids: torch.Tensor, full: torch.Tensor, cached: torch.Tensor) -> float:
    """How far a cache may move the logits of ``model`` pruned: CACHE_TOLERANCE, where the dense model keeps to it.

    ``full`` and ``cached`` are the logits with blocks skipped. Files may hold tables that were rounded each for itself
    (the decays of MiniMax in bf16), so that the dense model's own cache moves its logits by more: then twice that, and
    no more than LARGEST_CACHE_TOLERANCE.
    """
    if difference(full, cached) <= CACHE_TOLERANCE:
        return CACHE_TOLERANCE
    own = difference(full_logits(model, input_ids), cached_logits(model, input_ids))
    return min(max(CACHE_TOLERANCE, 2 * own), LARGEST_CACHE_TOLERANCE)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of logits, relative to the largest logit of ``one``."""
    return float((one - other).abs().max() / one.abs().max())


def compare(name: str, one: torch.Tensor, other: torch.Tensor, tolerance: float) -> dict[str, Any]:
    """The largest difference relative to the largest logit; RegrowError when it is above ``tolerance`` (0: bits)."""
    found = difference(one, other)
    if not found <= tolerance:
        raise RegrowError(
            f"self-test of pruning: {name} differ by {found:.2e} of the largest logit, allowed is {tolerance:g}; "
            "the pruned model would not compute what was scored. This model's blocks need support: please report it"
        )
    return {"check": name, "difference": found, "tolerance": tolerance}
