"""The PPL criterion: a block matters as much as the perplexity rises when it is left out.

Source: Shortened LLM (arXiv 2402.02834, section 3.2). The score of a block is exp of the mean token loss of the
model without it, over all tokens of the calibration sequences; nothing is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.importance.selection import near_ties, order_blocks
from pipeline.importance.sweep import removal_losses
from pipeline.run import RegrowError

#: Mean losses (nats) nearer than this are said to be ties: the rounding of the blocks' precision.
TIE = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 1e-5}


def score_blocks(
    model: nn.Module, batches: Iterable[torch.Tensor], criteria: Iterable[str] = ("ppl",)
) -> dict[str, Any]:
    """Score every block of a model: criterion -> its entry of scores.json (scores, order, dense perplexity, ...).

    ``batches`` are int64 ids (B, T), T the same in all; each batch goes through the model once. Raises RegrowError on
    an unknown criterion, on no batch, or on batches of several lengths.
    """
    unknown = set(criteria) - {"ppl"}
    if unknown:
        raise RegrowError(f"criteria {sorted(unknown)}: not known; known are: ppl")
    batches = list(batches)
    lengths = {batch.shape[1] for batch in batches}
    if len(lengths) != 1:
        raise RegrowError(f"calibration batches: one length is wanted, got {sorted(lengths) or 'no batch'}")
    losses = torch.cat([removal_losses(model, batch) for batch in batches], dim=1)
    tie = TIE[str(next(model.parameters()).dtype).removeprefix("torch.")]
    return {"ppl": summarise(losses, lengths.pop() - 1, tie)}


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
