"""Perplexities of a model without sets of its blocks: what choosing within a budget and comparing go by."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from pipeline.importance.batch_major import own_share
from pipeline.importance.kept import Kept
from pipeline.importance.ppl import perplexity_without
from pipeline.model.replacement import mapped_outputs
from pipeline.world import World

#: A run of removed blocks by its first one -> the map (d, d) fp32 that stands in for it.
Maps = Mapping[int, torch.Tensor]
#: Perplexity by text; None where it is infinite, or the text is not there.
ByText = dict[str, float | None]


class Perplexities:
    """Perplexities of a model without any set of its blocks, on each of several texts; every set is measured once.

    ``texts`` are ids (S, T) int64 by name, the same in all processes, which divide them; None stands for a text that
    is not there. ``kept`` keeps what was measured, so that a later start need not measure it again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        texts: Mapping[str, torch.Tensor | None],
        micro_batch: int,
        *,
        kept: Kept,
        world: World,
    ):
        self.model, self.world, self._kept = model, world, kept
        self._known: dict[str, ByText] = kept.known("perplexities", {})
        self._shares = {
            name: None if rows is None else own_share(rows, micro_batch, world) for name, rows in texts.items()
        }

    def __call__(self, removed: Sequence[int], maps: Maps | None = None) -> ByText:
        """Perplexity without the removed blocks, by text; with ``maps`` in their place."""
        name = ",".join(map(str, sorted(removed))) + (" with maps" if maps else "")
        if name not in self._known:
            with mapped_outputs(self.model, maps) if maps else contextlib.nullcontext():
                found = {text: self._measure(share, removed) for text, share in self._shares.items()}
            self._known[name] = found
            if self.world.rank == 0:
                self._kept.put("perplexities", self._known)
        return self._known[name]

    def dense_is_finite(self) -> bool:
        """Whether the model itself has a perplexity on every text that is there."""
        dense = self([])
        return None not in [dense[text] for text, share in self._shares.items() if share is not None]

    def _measure(self, share: list[torch.Tensor] | None, removed: Sequence[int]) -> float | None:
        if share is None:
            return None
        value = perplexity_without(self.model, share, removed, self.world)
        return value if math.isfinite(value) else None
