"""The cost of running stored models: memory on the host first, in processes of their own, then speeds in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipeline.evaluation.cost import Measuring, Peaks, measure_cost
from pipeline.evaluation.memory import fit_together, give_back
from pipeline.evaluation.protocol import CostProtocol
from pipeline.evaluation.resident import Stored, resident_peaks, tells_resident


def cost_of_running(
    stored: Mapping[str, Stored],
    weights: Mapping[str, int],
    protocol: CostProtocol,
    text: torch.Tensor,
    *,
    device: torch.device,
    say: Callable[[str], None],
) -> dict[str, list[dict[str, Any]]]:
    """The records of ``measure_cost`` for each model by its name; empty lists where the protocol has no batches.

    ``weights`` are the bytes of each model once it is loaded, ``text`` is what prompts are cut from, (any shape) int64.
    On a CPU memory is measured as ``resident_peaks`` does it, before any model is loaded here; where this machine does
    not tell it, that is said. RegrowError as there.
    """
    if not protocol.batches:
        return {name: [] for name in stored}
    give_back(device)
    peaks: Peaks = {}
    if device.type == "cpu" and tells_resident():
        say("cost: each model generates in a process of its own first, which tells what it takes of the memory")
        peaks = {
            name: resident_peaks(one, protocol.sizes, text, protocol.prompt_tokens) for name, one in stored.items()
        }
    elif device.type == "cpu":
        say("cost: memory is not measured: the kernel does not tell what a process has resident at its highest")
    # What a run takes at most comes on top of all that stands there.
    most = max((peak for of_sizes in peaks.values() for peak in of_sizes.values() if peak is not None), default=0)
    measuring = Measuring(
        names=list(stored),
        load=lambda name: stored[name].load(device),
        protocol=protocol,
        text=text,
        device=device,
        say=say,
    )
    # What is dispatched has filled the memory that there is.
    whole = all(one.dispatch is None for one in stored.values())
    return measure_cost(measuring, together=whole and fit_together([*weights.values(), most], device), peaks=peaks)
