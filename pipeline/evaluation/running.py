"""The cost of running stored models: memory on the host first, in processes of their own, then speeds in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from pipeline.evaluation.cost import Measuring, Peaks, measure_cost
from pipeline.evaluation.figures import Figures
from pipeline.evaluation.memory import fit_together, give_back
from pipeline.evaluation.protocol import CostProtocol, Size
from pipeline.evaluation.resident import Stored, resident_peaks, tells_resident


class Kept:
    """Records of finished sizes in ``figures``, for a start behind a kill; ``fixed``, as JSON, is all that decides them
    beside the protocol and the size."""

    def __init__(self, figures: Figures, fixed: Mapping[str, Any]):
        self._figures, self._fixed = figures, fixed

    def find(self, protocol: CostProtocol) -> dict[Size, Mapping[str, Any]]:
        """The records by model of each size of the protocol that is known."""
        found = {size: self._figures.find(self._of(protocol, size)) for size in protocol.sizes}
        return {size: records for size, (records, known) in found.items() if known}

    def keep(self, protocol: CostProtocol, size: Size, records: Mapping[str, Any]) -> None:
        """Keep the records by model of a size."""
        self._figures.keep(self._of(protocol, size), records)

    def _of(self, protocol: CostProtocol, size: Size) -> dict[str, Any]:
        how = [protocol.prompt_tokens, protocol.warm_up, protocol.repeats]
        return {"cost": [size.new_tokens, size.batch], "how": how, **self._fixed}


def cost_of_running(
    stored: Mapping[str, Stored],
    weights: Mapping[str, int],
    protocol: CostProtocol,
    text: torch.Tensor,
    *,
    device: torch.device,
    say: Callable[[str], None],
    kept: Kept,
) -> dict[str, list[dict[str, Any]]]:
    """The records of ``measure_cost`` for each model by its name; empty lists where the protocol has no batches.

    ``weights`` are the bytes of each model once it is loaded, ``text`` is what prompts are cut from, (any shape) int64.
    What ``kept`` has is taken as it is, and what is finished goes there.
    On a CPU memory is measured as ``resident_peaks`` does it, before any model is loaded here; where this machine does
    not tell it, that is said. RegrowError as there.
    """
    if not protocol.batches:
        return {name: [] for name in stored}
    give_back(device)
    measuring = Measuring(
        names=list(stored),
        load=lambda name: stored[name].load(device),
        protocol=protocol,
        text=text,
        device=device,
        say=say,
        known=kept.find(protocol),
        finished=partial(kept.keep, protocol),
    )
    peaks = _peaks(stored, measuring) if measuring.sizes and device.type == "cpu" else {}
    # What a run takes at most comes on top of all that stands there.
    most = max((peak for of_sizes in peaks.values() for peak in of_sizes.values() if peak is not None), default=0)
    # What is dispatched has filled the memory that there is.
    whole = all(one.dispatch is None for one in stored.values())
    return measure_cost(measuring, together=whole and fit_together([*weights.values(), most], device), peaks=peaks)


def _peaks(stored: Mapping[str, Stored], measuring: Measuring) -> Peaks:
    """What each model takes of the host's memory, where this machine tells it."""
    if not tells_resident():
        measuring.say(
            "cost: memory is not measured: the kernel does not tell what a process has resident at its highest"
        )
        return {}
    measuring.say("cost: each model generates in a process of its own first, which tells what it takes of the memory")
    tokens = measuring.protocol.prompt_tokens
    return {name: resident_peaks(one, measuring.sizes, measuring.text, tokens) for name, one in stored.items()}
