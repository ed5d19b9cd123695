"""Perplexity from a notebook: of ids as people have them, by the evaluation's own arithmetic."""

from __future__ import annotations

from itertools import groupby
from math import ceil

import torch
from transformers import PreTrainedModel

from pipeline.evaluation.perplexity import Measured, measured, row_losses
from pipeline.model.head import find_head, require_causal_head
from pipeline.model.hooks import input_device
from pipeline.model.ids import Batches, id_batches
from pipeline.shown import bars, ticking


def perplexity(model: PreTrainedModel, batches: Batches, *, progress: bool = True) -> Measured:
    """exp(sum of losses / number of targets) of a model on sequences of ids, each token given those before it.

    >>> found = perplexity(model, batches)
    >>> found["tokens"] == sum(batch[:, 1:].numel() for batch in batches)
    True
    >>> print(f"{found['value']:.2f} ± {found['stderr']:.2f}")  # doctest: +ELLIPSIS
    1... ± ...

    ``batches`` are ids (B, T) int64 without padding: one such tensor, several, also of several T, or what a tokenizer
    returns (``Batches``). A forward takes as many sequences as the first batch of its T has. The losses are computed
    in the model's dtype, taken in fp32 and summed in fp64, on the model's device, wherever the ids lie. ``progress`` is
    a bar on a terminal and in a notebook.

    Returns ``value``, the perplexity; ``stderr``, its standard error over the choice of sequences (None for one);
    ``loss``, nats for each target; ``tokens``, the number of targets; ``rows``, of sequences; ``length``, T, None where
    there are several; and ``row_losses``, nats for each target of each sequence, in their order. For the same rows
    that is what stage evaluate writes.

    A sequence's first token is never a target: nothing stands before it. So T - 1 are, and a BOS token in front, where
    the tokenizer puts one, makes the first token of the text a target too. The two are different numbers; compare
    models under one of them, on the same text and at the same T.

    Raises RegrowError on what is no batches (``id_batches``), on a model without a head or one that looks both ways,
    and on a loss that is not finite.
    """
    found = id_batches(model, batches)
    require_causal_head(model)
    device, head = input_device(model), find_head(model)
    runs = [list(run) for _, run in groupby(found, key=lambda batch: batch.shape[1])]
    forwards = sum(ceil(sum(map(len, run)) / len(run[0])) for run in runs)
    sums, targets = [], []
    with bars(progress), ticking(forwards, "perplexity") as tick:
        for run in runs:
            own, counted = row_losses(
                model, torch.cat(run), micro_batch=len(run[0]), device=device, head=head, between=tick
            )
            sums.append(own)
            targets.append(counted)
    lengths = {batch.shape[1] for batch in found}
    return measured(torch.cat(sums), torch.cat(targets), lengths.pop() if len(lengths) == 1 else None)
