"""Comparison: what the pruned, untrained model is worth, for each way of choosing which blocks go.

A criterion that does not beat the controls, on text that it was not computed from, has shown nothing. So the sets of
every scored criterion, of contiguous and greedy selection and of the controls are measured by the same perplexity, on
the calibration sequences and on held-out rows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.criteria import CONTROLS
from pipeline.importance.batch_major import own_share
from pipeline.importance.controls import control_blocks
from pipeline.importance.ppl import perplexity_without
from pipeline.importance.selection import choose_blocks, choose_window, protected_blocks
from pipeline.model.replacement import mapped_outputs
from pipeline.run import RegrowError, read_json, write_json
from pipeline.world import World

#: Criteria whose best window is compared beside their single blocks: those that peers choose windows by.
BY_WINDOW = ("ppl", "block_influence", "angular_last", "angular_mean", "linear")

#: A run of removed blocks by its first one -> the map that stands in for it.
Maps = Mapping[int, torch.Tensor]


class Perplexities:
    """Perplexities of a model without any set of its blocks, on each of several texts; every set is measured once.

    ``texts`` are ids (S, T) int64 by name, the same in all processes, which divide them; None stands for a text that
    is not there. ``file`` keeps what was measured, so that a later start need not measure it again.
    """

    def __init__(
        self, model: nn.Module, texts: Mapping[str, torch.Tensor | None], micro_batch: int, world: World, file: Path
    ):
        self.model, self.world, self.file = model, world, file
        self.known = world.broadcast(read_json(file) if world.rank == 0 and file.exists() else {})
        self.shares = {
            name: None if rows is None else own_share(rows, micro_batch, world) for name, rows in texts.items()
        }

    def __call__(self, removed: Sequence[int], maps: Maps | None = None) -> dict[str, float | None]:
        """Perplexity without the removed blocks, by text; with ``maps`` in their place. None where it is infinite."""
        name = ",".join(map(str, sorted(removed))) + (" with maps" if maps else "")
        if name not in self.known:
            with mapped_outputs(self.model, maps) if maps else contextlib.nullcontext():
                found = {text: self._measure(share, removed) for text, share in self.shares.items()}
            self.known[name] = found
            if self.world.rank == 0:
                write_json(self.file, self.known)
        return self.known[name]

    def _measure(self, share: list[torch.Tensor] | None, removed: Sequence[int]) -> float | None:
        if share is None:
            return None
        value = perplexity_without(self.model, share, removed, self.world)
        return value if math.isfinite(value) else None


def compared_sets(
    criteria: Mapping[str, Mapping[str, Any]],
    total: int,
    counts: Sequence[int],
    *,
    protect_first: int,
    protect_last: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The sets of every criterion (entries of scores.json), best window and control, for each count of blocks.

    Each has ``by``, ``selection``, ``linear_map`` (false), ``remove`` and ``blocks``. A count that the protect rule
    does not allow is left out, and so are windows of ppl and linear whose length was not scored.
    """
    protect = {"protect_first": protect_first, "protect_last": protect_last}
    free = total - len(protected_blocks(total, protect_first, protect_last))
    for remove in [count for count in counts if 0 < count <= min(free, total - 1)]:

        def named(by: str, selection: str, blocks: list[int], remove: int = remove) -> dict[str, Any]:
            return {"by": by, "selection": selection, "linear_map": False, "remove": remove, "blocks": blocks}

        for name, entry in criteria.items():
            yield named(name, "one-shot", choose_blocks(entry["order"], remove, **protect))
        for name in BY_WINDOW:
            windows = criteria.get(name, {}).get("windows")
            if windows is not None and not (isinstance(windows, Mapping) and str(remove) not in windows):
                yield named(name, "contiguous", choose_window(windows, remove, **protect))
        for control in CONTROLS:
            yield named(control, "control", control_blocks(control, total, remove, seed=seed, **protect))


def compare(
    sets: Sequence[dict[str, Any]], perplexities: Perplexities, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The sets with their ``perplexity`` by text. Raises RegrowError when the model itself has none."""
    if None in [value for text, value in perplexities([]).items() if perplexities.shares[text] is not None]:
        raise RegrowError("the dense model's perplexity is not a finite number: removals cannot be compared with it")
    measured = []
    for count, one in enumerate(sets, start=1):
        found = perplexities(one["blocks"])
        measured.append({**one, "perplexity": found})
        values = ", ".join(f"{text} {value:.2f}" for text, value in found.items() if value is not None)
        say(f"comparison {count} of {len(sets)}: {one['remove']} blocks by {one['by']}, {one['selection']}: {values}")
    return measured
