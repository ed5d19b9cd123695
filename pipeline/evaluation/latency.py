"""How fast models generate, measured side by side: a machine is never as fast now as it was minutes ago.

The models take turns, so that whatever else the machine does meets all of them alike, and the order of the turns is
turned round each time, so that none always follows the same one. Medians, since a run that was disturbed is not half
of the truth; the lowest and the highest beside them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError
from pipeline.evaluation.generation import encode_prompt
from pipeline.evaluation.memory import give_back
from pipeline.evaluation.timing import Timed, TimedRun, there_and_back

#: How often models that do not fit side by side are loaded again.
ROUNDS = 3


@dataclass(frozen=True)
class Workload:
    """What is timed: exactly ``new_tokens`` tokens after ``batch`` copies of ``prompt``, at least ``repeats`` times."""

    prompt: str
    new_tokens: int
    batch: int
    repeats: int


def measure_latency(
    load: Callable[[str], tuple[PreTrainedModel, Encoder]],
    names: Sequence[str],
    work: Workload,
    *,
    device: torch.device,
    together: bool,
) -> dict[str, dict[str, Any]]:
    """Time the greedy generation of each model; ``load`` gives the one of a name, standing on ``device``.

    ``together``: all are loaded at first and stay, and take turns one run at a time. Otherwise one stands there at a
    time, and each is loaded ROUNDS times for a third of its runs, rounded up. Every model generates once to warm up
    after it was loaded. End-of-sequence tokens are ignored, so that all do the same work. A run is timed from the
    prompt on the device to the last token, with a GPU synchronised around it.

    Returns for each name ``prompt_tokens``, ``new_tokens``, ``batch``, ``repeats`` (runs that were timed),
    ``loaded`` (``together`` or ``in turn``), ``rounds`` (turns of each model), ``latency_seconds`` (median of a run),
    ``latency_range`` (seconds, [lowest, highest]; None for one run), ``tokens_per_second`` (batch x new_tokens /
    latency) and ``peak_memory_bytes``: the model's weights and the most that a timed run added to what stood on the
    GPU. None on a CPU: torch keeps no count there, and the process's own peak would tell of everything that it did
    before. RegrowError as ``encode_prompt``, and for a batch or repeats below 1.
    """
    for name, number in (("batch", work.batch), ("repeats", work.repeats)):
        if number < 1:
            raise RegrowError(f"generation cannot be measured with {name} {number}; it must be 1 or more")
    rounds, runs = (work.repeats, 1) if together else (ROUNDS, math.ceil(work.repeats / ROUNDS))
    staying = {name: _warm(*load(name), work, device) for name in names} if together else {}

    def turn(name: str) -> list[TimedRun]:
        timed = staying.get(name) or _warm(*load(name), work, device)
        return [timed.run() for _ in range(runs)]

    found: dict[str, list[TimedRun]] = {name: [] for name in names}
    for name in there_and_back(names, rounds):
        found[name] += turn(name)
        if not together:
            give_back(device)
    loaded = {"loaded": "together" if together else "in turn", "rounds": rounds}
    return {name: loaded | _record(measured, work) for name, measured in found.items()}


def _warm(model: PreTrainedModel, encoder: Encoder, work: Workload, device: torch.device) -> Timed:
    """A model that has generated once."""
    ids = encode_prompt(model, encoder, work.prompt, work.new_tokens)
    timed = Timed(model, ids.repeat(work.batch, 1), work.new_tokens, device)
    timed.run()
    return timed


def _record(runs: Sequence[TimedRun], work: Workload) -> dict[str, Any]:
    seconds = [run.seconds for run in runs]
    latency = statistics.median(seconds)
    return {
        "prompt_tokens": runs[0].prompt,
        "new_tokens": runs[0].made,
        "batch": work.batch,
        "repeats": len(runs),
        "latency_seconds": latency,
        "latency_range": [min(seconds), max(seconds)] if len(runs) > 1 else None,
        "tokens_per_second": work.batch * runs[0].made / latency,
        "peak_memory_bytes": None if runs[0].memory is None else max(run.memory for run in runs),
    }
