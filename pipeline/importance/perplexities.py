"""Perplexities of a model without sets of its blocks: what choosing within a budget and comparing go by."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from pipeline.importance.batch_major import own_share
from pipeline.importance.kept import Kept
from pipeline.importance.ppl import losses_without
from pipeline.model.loss import perplexity_of
from pipeline.model.replacement import mapped_outputs
from pipeline.world import World

#: A run of removed blocks by its first one -> the map (d, d) fp32 that stands in for it.
Maps = Mapping[int, torch.Tensor]
#: Perplexity by text; None where it is infinite, or the text is not there.
ByText = dict[str, float | None]
#: The mean loss of each row (nats per target) by text; None where the text is not there, or its loss is no number.
RowLosses = dict[str, list[float] | None]


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
        self._known: dict[str, RowLosses] = kept.known("row-losses", {})
        self._shares = {
            name: None if rows is None else own_share(rows, micro_batch, world) for name, rows in texts.items()
        }

    def __call__(self, removed: Sequence[int], maps: Maps | None = None) -> ByText:
        """Perplexity without the removed blocks, by text; with ``maps`` in their place."""
        found = self.row_losses(removed, maps)
        return {text: None if rows is None else _finite(math.fsum(rows) / len(rows)) for text, rows in found.items()}

    def row_losses(self, removed: Sequence[int], maps: Maps | None = None) -> RowLosses:
        """The rows' losses without the removed blocks, by text; with ``maps`` in their place."""
        name = ",".join(map(str, sorted(removed))) + (" with maps" if maps else "")
        if name not in self._known:
            with mapped_outputs(self.model, maps) if maps else contextlib.nullcontext():
                found = {text: self._measure(share, removed) for text, share in self._shares.items()}
            self._known[name] = found
            if self.world.rank == 0:
                self._kept.put("row-losses", self._known)
        return self._known[name]

    def dense_is_finite(self) -> bool:
        """Whether the model itself has a perplexity on every text that is there."""
        dense = self([])
        return None not in [dense[text] for text, share in self._shares.items() if share is not None]

    def _measure(self, share: list[torch.Tensor] | None, removed: Sequence[int]) -> list[float] | None:
        if share is None:
            return None
        rows = [one.loss / one.targets for one in losses_without(self.model, share, removed, self.world)]
        return rows if all(map(math.isfinite, rows)) else None


def _finite(loss: float) -> float | None:
    """The perplexity of a mean loss; None beyond fp64."""
    value = perplexity_of(loss)
    return value if math.isfinite(value) else None
