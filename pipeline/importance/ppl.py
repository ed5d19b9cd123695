"""The PPL criterion: a block matters as much as the perplexity rises when it is left out.

Source: Shortened LLM (arXiv 2402.02834, section 3.2). The score of a block is exp of the mean token loss of the
model without it, over all tokens of the calibration sequences; nothing is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import distributed, nn

from pipeline.importance.selection import near_ties, order_blocks
from pipeline.importance.sweep import removal_losses
from pipeline.run import RegrowError

#: Mean losses (nats) nearer than this are said to be ties: the rounding of the blocks' precision.
TIE = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 1e-5}


def summarise(losses: torch.Tensor, targets: int, tie: float) -> dict[str, Any]:
    """The PPL criterion's entry of scores.json from summed losses (blocks + 1, sequences) fp64, dense last.

    ``targets`` is the number of target tokens of one sequence. Sums run in sequence order.
    """
    means = [math.fsum(row) / (targets * len(row)) for row in losses.tolist()]
    scores = [math.exp(mean) for mean in means]
    order = order_blocks(scores[:-1])
    return {
        "scores": scores[:-1],
        "order": order,
        "higher_is": "more important",
        "dense": scores[-1],
        "near_ties": near_ties(means[:-1], order, tie),
        "tie_tolerance": tie,
        "sequence_losses": (losses[:-1] / targets).tolist(),
        "dense_sequence_losses": (losses[-1] / targets).tolist(),
    }


def perplexity_without(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    removed: Sequence[int],
    group: distributed.ProcessGroup | None = None,
) -> float:
    """Perplexity, over all tokens of ``batches`` (ids (B, T) int64), of the model without the removed blocks.

    With a ``group`` the batches are those of this process, and the perplexity that of all. Raises RegrowError when
    there is no batch.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        losses = removal_losses(model, batch, blocks=[], without=removed)
        sums += torch.tensor([losses.sum(), batch[:, 1:].numel()])
    if group is not None:
        distributed.all_reduce(sums, group=group)
    if not sums[1]:
        raise RegrowError("no batch: a perplexity needs one sequence at least")
    return math.exp(sums[0] / sums[1])
