"""How each criterion of ``pipeline.criteria`` is made, under the same names: what it needs, and its entry.

One sweep gives all that need the ``variants`` without a block or a window, and the ``states`` between the blocks;
states alone cost one dense forward. ``maps`` take one more dense pass, ``gradients`` one forward and backward,
``weights`` are read. Formulas stand in the module that computes them: ppl.py, distances.py, linear.py, weights.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.importance.batch_major import own_share, require_micro_batch
from pipeline.importance.distances import DISTANCES
from pipeline.importance.linear import RIDGE, linear_entry, split_for_maps
from pipeline.importance.ppl import summarise
from pipeline.importance.sweep import Window
from pipeline.importance.weights import magnitude_entry, taylor_entry
from pipeline.model.ids import require_ids
from pipeline.world import World

#: What each criterion is made of.
NEEDS = {
    "ppl": "variants",
    **dict.fromkeys(DISTANCES, "states"),
    "linear": "maps",
    "magnitude": "weights",
    "taylor": "gradients",
}
#: Those that the sweep meets.
SWEPT = ("variants", "states")


@dataclass(frozen=True)
class Settings:
    """What criteria are told.

    >>> found = score_blocks(model, batches, "ppl", Settings(ppl_lengths=(2,)))
    >>> len(found["ppl"]["windows"]["2"]["scores"])
    7

    ``position`` is the token that some look at; ``ppl_lengths`` and ``linear_lengths`` are
    those of the windows that ``ppl`` and ``linear`` are asked for beside single blocks, ``ridge`` that of ``linear``;
    the rest are the reductions of weights.py."""

    position: int = -1
    ppl_lengths: tuple[int, ...] = ()
    linear_lengths: tuple[int, ...] = ()
    ridge: float = RIDGE
    norm_power: float = 1
    weight_reduction: str = "sum"
    block_reduction: str = "sum"

    @property
    def reductions(self) -> dict[str, Any]:
        """The reductions of ``magnitude_entry`` and ``taylor_entry``."""
        names = ("norm_power", "weight_reduction", "block_reduction")
        return {name: getattr(self, name) for name in names}


#: What they are told where nothing is said.
DEFAULTS = Settings()


@dataclass(frozen=True)
class Text:
    """What blocks are scored on, the same in every process.

    >>> text = Text(torch.cat(batches), micro_batch=2)

    ``sequences`` are ids (S, T) int64, ``micro_batch`` of them go in a forward, and ``maps`` gives the sequences (N, T)
    of linear maps; None takes ``sequences``. Raises RegrowError on what is no ids, and on a micro-batch of none.
    """

    sequences: torch.Tensor
    micro_batch: int
    maps: Callable[[], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        require_ids(self.sequences, "Text: sequences")
        require_micro_batch(self.micro_batch)


def _linear(model: PreTrainedModel, text: Text, settings: Settings, world: World) -> dict[str, Any]:
    sequences = text.sequences if text.maps is None else text.maps()
    fit, judge = split_for_maps(sequences, text.micro_batch, world.rank, world.size)
    return linear_entry(model, fit, judge, lengths=settings.linear_lengths, ridge=settings.ridge, world=world)


def _magnitude(blocks: Iterable[nn.Module], settings: Settings) -> dict[str, Any]:
    return magnitude_entry(blocks, **settings.reductions)


def _taylor(model: PreTrainedModel, text: Text, settings: Settings, world: World) -> dict[str, Any]:
    own = own_share(text.sequences, text.micro_batch, world)
    return taylor_entry(model, own, **settings.reductions, world=world)


#: By what a criterion needs, how its entry of scores.json is made. Those of ``states`` stand in distances.MEASURES.
#: Of variants: from the sweep's summed losses, target tokens of a sequence, the difference that is rounding, windows.
FROM_VARIANTS: dict[str, Callable[[torch.Tensor, int, float, Sequence[Window]], dict[str, Any]]] = {"ppl": summarise}
#: Of weights: every process makes it, from all blocks one after the other, which need not be there together.
FROM_WEIGHTS: dict[str, Callable[[Iterable[nn.Module], Settings], dict[str, Any]]] = {"magnitude": _magnitude}
#: Of maps and gradients: every process makes it, from the whole model on its device.
FROM_MODEL: dict[str, Callable[[PreTrainedModel, Text, Settings, World], dict[str, Any]]] = {
    "linear": _linear,
    "taylor": _taylor,
}
