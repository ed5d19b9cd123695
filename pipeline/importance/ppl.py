"""The PPL criterion: a block matters as much as the perplexity rises when it is left out.

Source: Shortened LLM (arXiv 2402.02834, section 3.2). The score of a block is exp of the mean token loss of the
model without it, over all tokens of the calibration sequences; nothing is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.importance.selection import near_ties, order_blocks
from pipeline.importance.sweep import Window, removal_losses
from pipeline.model.loss import perplexity_of
from pipeline.world import ALONE, World

#: Mean losses (nats) nearer than this are said to be ties: the rounding of the blocks' precision, and of token losses,
#: which are fp32 for blocks in fp64 too.
TIE = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 1e-5, "float64": 1e-5}


class RowLoss(NamedTuple):
    """The summed ``loss`` (nats) of a row of so many ``targets``."""

    loss: float
    targets: int


def windows_of(total: int, lengths: Iterable[int]) -> list[Window]:
    """Every window of each length in a model of ``total`` blocks: by length, then by start."""
    return [(start, length) for length in lengths for start in range(total - length + 1)]


def summarise(losses: torch.Tensor, targets: int, tie: float, windows: Sequence[Window] = ()) -> dict[str, Any]:
    """The PPL criterion's entry of scores.json from summed losses (blocks + windows + 1, sequences) fp64, dense last.

    ``targets`` is the number of target tokens of one sequence. Sums run in sequence order. Of ``windows``, as
    ``windows_of`` lists them, ``windows`` has for each length, as a string, ``scores`` by start and ``best_start``,
    the start of the lowest. Raises RegrowError where a perplexity is beyond fp64.
    """
    means = [math.fsum(row) / (targets * len(row)) for row in losses.tolist()]
    scores = [perplexity_of(mean) for mean in means]
    blocks = len(scores) - 1 - len(windows)
    names = [*range(blocks), *(f"{start} to {start + length - 1}" for start, length in windows), "none"]
    beyond = [name for name, score in zip(names, scores, strict=True) if math.isinf(score)]
    if beyond:
        raise RegrowError(
            f"ppl: without blocks {beyond} the mean loss is up to {max(means):,.0f} nats, and the perplexity beyond "
            "fp64; the weights or the text are not what they should be, or score by a distance instead"
        )
    *alone, dense = scores
    by_length: dict[str, list[float]] = {}
    for (_, length), score in zip(windows, alone[blocks:], strict=True):
        by_length.setdefault(str(length), []).append(score)
    order = order_blocks(alone[:blocks])
    return {
        "scores": alone[:blocks],
        "order": order,
        "higher_is": "more important",
        "dense": dense,
        "near_ties": near_ties(means[:blocks], order, tie),
        "tie_tolerance": tie,
        "sequence_losses": (losses[:blocks] / targets).tolist(),
        "dense_sequence_losses": (losses[-1] / targets).tolist(),
    } | (
        {"windows": {n: {"scores": scores, "best_start": scores.index(min(scores))} for n, scores in by_length.items()}}
        if by_length
        else {}
    )


def perplexity_without(
    model: PreTrainedModel,
    batches: Iterable[torch.Tensor],
    removed: Sequence[int],
    world: World = ALONE,
) -> float:
    """Perplexity, over all tokens of ``batches`` (ids (B, T) int64), of the model without the removed blocks.

    Infinite where it is beyond fp64. The batches are those of this process, the perplexity is that of all processes'.
    Raises RegrowError when there is no batch.
    """
    losses = losses_without(model, batches, removed, world)
    return perplexity_of(math.fsum(one.loss for one in losses) / sum(one.targets for one in losses))


def losses_without(
    model: PreTrainedModel,
    batches: Iterable[torch.Tensor],
    removed: Sequence[int],
    world: World = ALONE,
) -> list[RowLoss]:
    """What each row of ``batches`` (ids (B, T) int64) costs the model without the removed blocks: the rows of all
    processes in the order of their ranks, on every process. Raises RegrowError when there is none."""
    mine = []
    for batch in batches:
        sums = removal_losses(model, batch, blocks=[], without=removed)[-1]
        mine += [RowLoss(loss, batch.shape[1] - 1) for loss in sums.tolist()]
    every = [one for share in world.gather(mine) for one in share]
    if not every:
        raise RegrowError("no batch: a perplexity needs one sequence at least")
    return every
