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
from pipeline.model.loss import perplexity_of
from pipeline.run import RegrowError

#: Mean losses (nats) nearer than this are said to be ties: the rounding of the blocks' precision, and of token losses,
#: which are fp32 for blocks in fp64 too.
TIE = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 1e-5, "float64": 1e-5}


def summarise(losses: torch.Tensor, targets: int, tie: float) -> dict[str, Any]:
    """The PPL criterion's entry of scores.json from summed losses (blocks + 1, sequences) fp64, dense last.

    ``targets`` is the number of target tokens of one sequence. Sums run in sequence order. Raises RegrowError where a
    perplexity is beyond fp64.
    """
    means = [math.fsum(row) / (targets * len(row)) for row in losses.tolist()]
    scores = [perplexity_of(mean) for mean in means]
    beyond = [block for block, score in enumerate(scores) if math.isinf(score)]
    if beyond:
        dense = " (the dense model)" if beyond[-1] == len(scores) - 1 else ""
        raise RegrowError(
            f"ppl: without blocks {beyond}{dense} the mean loss is up to {max(means):,.0f} nats, and the perplexity "
            "beyond fp64; the weights or the text are not what they should be, or score by a distance instead"
        )
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

    Infinite where it is beyond fp64. With a ``group`` the batches are those of this process, and the perplexity that of
    all. Raises RegrowError when
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
    return perplexity_of(float(sums[0] / sums[1]))
