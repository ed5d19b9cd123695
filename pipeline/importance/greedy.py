"""Greedy selection: remove the block that costs least, score what is left again, and so on.

Source: SLEB (arXiv 2402.09025): in every round the remaining block goes whose removal gives the lowest loss. Where
SLEB runs the model once for each candidate, a round is one sweep over the model without the blocks that are gone;
protected blocks run, but nothing is computed without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.importance.cut import Cut
from pipeline.importance.sweep import removal_losses
from pipeline.model.blocks import block_parameters, check_indices
from pipeline.model.describe import Sizes
from pipeline.model.loss import perplexity_of
from pipeline.world import ALONE, World


@dataclass(frozen=True)
class Round:
    """One removal: the block that went, and the perplexity of the model without each block that could have gone.

    ``dense`` is the perplexity that the round began with, ``perplexity`` the one that it left.
    """

    removed: int
    dense: float
    candidates: dict[int, float]

    @property
    def perplexity(self) -> float:
        return self.candidates[self.removed]


def greedy_rounds(
    model: PreTrainedModel,
    batches: Sequence[torch.Tensor],
    cut: Cut,
    *,
    done: Sequence[int] = (),
    world: World = ALONE,
) -> Iterator[Round]:
    """Rounds of greedy removal, each as soon as it is known; nothing of the model is changed.

    ``batches`` are ids (B, T) int64, each swept once in every round. It ends when as many blocks are gone as the cut
    counts, or before the round that would bring the perplexity on ``batches`` above the cut's. ``done`` are blocks
    that earlier rounds removed: they count, and the rounds go on from there. Equal losses by index.

    The batches are those of this process; every process gets the same rounds. Raises RegrowError when the cut is
    impossible or names its blocks, or ``done`` holds a protected block.
    """
    sizes = Sizes.of(model)
    total, budget = len(sizes.blocks), cut.perplexity
    kept = cut.protected(total)
    if set(check_indices(done, total)) & set(kept):
        raise RegrowError(f"blocks {sorted(done)} are done, but {kept} are protected")
    rounds = cut.count(sizes) if budget is None else cut.most(total)
    gone = list(done)
    while len(gone) < rounds:
        free = [block for block in cut.free(total) if block not in gone]
        means = _mean_losses(model, batches, free, gone, world)
        best = min(free, key=lambda block: (means[block], block))
        perplexities = {block: perplexity_of(mean) for block, mean in means.items()}
        if budget is not None and not perplexities[best] <= budget:
            return
        if math.isinf(perplexities[best]):
            raise RegrowError(
                f"greedy selection: without any further block the perplexity is beyond fp64 ({means[best]:,.0f} nats); "
                f"{len(gone)} blocks are gone, remove no more"
            )
        gone.append(best)
        yield Round(best, perplexities.pop(total), perplexities)


def _mean_losses(
    model: PreTrainedModel, batches: Sequence[torch.Tensor], free: list[int], gone: list[int], world: World
) -> dict[int, float]:
    """Mean token loss (nats) without each free block; under the number of blocks, that of the model as it is."""
    sums = torch.zeros(len(free) + 2, dtype=torch.float64)
    for batch in batches:
        sums[:-1] += removal_losses(model, batch, blocks=free, without=gone).sum(dim=1)
        sums[-1] += batch[:, 1:].numel()
    world.sum(sums)
    if not sums[-1]:
        raise RegrowError("no batch: greedy selection needs one sequence at least")
    means = (sums[:-1] / sums[-1]).tolist()
    return dict(zip([*free, len(block_parameters(model))], means, strict=True))
