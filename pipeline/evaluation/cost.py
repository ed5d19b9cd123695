"""What models cost to run, measured side by side at several batches and lengths: time, and memory on the way.

As where one workload is timed (``latency``) the models take turns. A batch that does not fit is a finding and not a
failure: it is recorded, and what takes no less memory is not tried with that model. A model is held to fit or not by
itself: where models that stand side by side run out of memory, they are loaded one by one from there on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.evaluation.latency import ROUNDS
from pipeline.evaluation.memory import give_back, ran_out
from pipeline.evaluation.protocol import CostProtocol, Size, prompts
from pipeline.evaluation.timing import Timed, TimedRun, there_and_back

#: What became of a size: it was measured, it did not fit, or a smaller one had not fitted.
MEASURED, OUT_OF_MEMORY, NOT_TRIED = "measured", "out of memory", "not tried"

#: Of each model, the bytes that each size takes of the host; None for one that does not fit.
Peaks = Mapping[str, Mapping[Size, int | None]]


@dataclass(frozen=True)
class Measuring:
    """The models' names, how each is loaded to stand on ``device``, what is measured, and the (any shape) int64 text
    that the prompts are cut from. ``say`` hears of every size. ``known`` are records by model of sizes that an earlier
    start has finished; ``finished`` is told those of every size that is measured with all models side by side."""

    names: Sequence[str]
    load: Callable[[str], PreTrainedModel]
    protocol: CostProtocol
    text: torch.Tensor
    device: torch.device
    say: Callable[[str], None]
    known: Mapping[Size, Mapping[str, Any]] = field(default_factory=dict)
    finished: Callable[[Size, Mapping[str, Any]], None] = lambda size, records: None

    @property
    def sizes(self) -> list[Size]:
        """What is left to measure, the smallest first."""
        return [size for size in self.protocol.sizes if size not in self.known]

    def timed(self, model: PreTrainedModel, size: Size) -> Timed:
        """The model, set to go on from as many prompts as ``size`` has."""
        ids = prompts(self.text, size.batch, self.protocol.prompt_tokens)
        return Timed(model, ids, size.new_tokens, self.device)


def measure_cost(measuring: Measuring, *, together: bool, peaks: Peaks) -> dict[str, list[dict[str, Any]]]:
    """Measure every size that is left with each model; for each name a list of records of all, the smallest size first.

    ``together``: all models are loaded at first, and take turns one run at a time for as long as what they do fits
    beside them all. Otherwise, and from then on, one stands there at a time, and each is loaded ROUNDS times for a
    third of its runs, rounded up. ``peaks`` are what was found of the host's memory beforehand (``resident``), empty
    where the models run on a GPU: what did not fit there is not tried.

    A record has ``prompt_tokens``, ``new_tokens``, ``batch`` and ``outcome``: ``measured``, ``out of memory``, or ``not
    tried`` where a smaller one had run out. A measured one has ``loaded`` (``together`` or ``in turn``), ``rounds``,
    ``warm_up``, ``repeats`` (timed runs); ``latency_seconds`` (of a whole run), ``first_token_seconds`` (of these, to
    the first token: the prompt is read) and ``further_token_seconds`` (for each token behind it), each with ``median``,
    ``lowest``, ``highest``, ``lower_quartile`` and ``upper_quartile``; ``tokens_per_second`` (batch x new tokens /
    median latency), ``decoding_tokens_per_second`` (batch / median of a further token); ``peak_memory_bytes``, and
    ``peak_memory_of``: ``gpu`` (the weights, and the most that a run allocated beside them) or ``process``
    (``resident``); both None where neither was found.
    """
    found, sizes = _Found(measuring, peaks), measuring.protocol.sizes
    left = measuring.sizes
    for size in measuring.known:
        measuring.say(f"cost: {_words(size)}: measured before this start")
    if left and together:
        left = _side_by_side(measuring, found)
        give_back(measuring.device)
        if left:
            measuring.say(f"cost: {_words(left[0])}: the models do not fit side by side, and are loaded one by one")
    if left:
        _one_by_one(measuring, found, left)
    return {
        name: [measuring.known[size][name] if size in measuring.known else found.record(name, size) for size in sizes]
        for name in measuring.names
    }


class _Found:
    """What was measured so far, and what did not fit."""

    def __init__(self, measuring: Measuring, peaks: Peaks):
        self._measuring, self._peaks = measuring, peaks
        self._runs: dict[tuple[str, Size], _Runs] = {}
        self._full: dict[str, list[Size]] = {name: [] for name in measuring.names}
        for size, records in measuring.known.items():
            for name, record in records.items():
                if record["outcome"] == OUT_OF_MEMORY:
                    self._full[name].append(size)
        for name, of_sizes in peaks.items():
            for size in sorted(size for size, peak in of_sizes.items() if peak is None):
                self.full(name, size)

    def fits(self, name: str, size: Size) -> bool:
        """Whether nothing that takes no more memory has run out of it."""
        return not any(size.holds(other) for other in self._full[name])

    def names(self) -> list[str]:
        """The models for which some size may fit: one that does not fit by itself must not even be loaded."""
        sizes = self._measuring.sizes
        return [name for name in self._measuring.names if any(self.fits(name, size) for size in sizes)]

    def full(self, name: str, size: Size) -> None:
        """The model ran out of memory."""
        if self.fits(name, size):
            self._measuring.say(f"cost: {name} does not fit with {_words(size)}; what takes no less is not tried")
            self._full[name].append(size)

    def add(self, name: str, size: Size, loaded: str, rounds: int, runs: Sequence[TimedRun]) -> None:
        """Timed runs, beside those of earlier rounds."""
        self._runs.setdefault((name, size), _Runs(loaded, rounds)).runs.extend(runs)

    def tell(self, size: Size) -> None:
        """Say how fast each model is that was measured."""
        records = {name: self.record(name, size) for name in self._measuring.names}
        speeds = [
            f"{name} {record['tokens_per_second']:.1f} tokens/s, the first after "
            f"{record['first_token_seconds']['median']:.3f} s"
            for name, record in records.items()
            if record["outcome"] == MEASURED
        ]
        if speeds:
            self._measuring.say(f"cost: {_words(size)}: {'; '.join(speeds)}")

    def record(self, name: str, size: Size) -> dict[str, Any]:
        """One entry of results.json."""
        protocol = self._measuring.protocol
        asked = {"prompt_tokens": protocol.prompt_tokens, "new_tokens": size.new_tokens, "batch": size.batch}
        if not self.fits(name, size):
            return asked | {"outcome": OUT_OF_MEMORY if size in self._full[name] else NOT_TRIED}
        found = self._runs[name, size]
        whole, further = _spread([run.seconds for run in found.runs]), _spread([run.further for run in found.runs])
        on_gpu = [run.memory for run in found.runs if run.memory is not None]
        resident = self._peaks.get(name, {}).get(size)
        return asked | {
            "outcome": MEASURED,
            "loaded": found.loaded,
            "rounds": found.rounds,
            "warm_up": protocol.warm_up,
            "repeats": len(found.runs),
            "latency_seconds": whole,
            "first_token_seconds": _spread([run.first for run in found.runs]),
            "further_token_seconds": further,
            "tokens_per_second": size.batch * size.new_tokens / whole["median"],
            "decoding_tokens_per_second": size.batch / further["median"],
            "peak_memory_bytes": max(on_gpu) if on_gpu else resident,
            "peak_memory_of": "gpu" if on_gpu else None if resident is None else "process",
        }


@dataclass
class _Runs:
    """Timed runs of a model with a size, and how the model stood there."""

    loaded: str
    rounds: int
    runs: list[TimedRun] = field(default_factory=list)


def _side_by_side(measuring: Measuring, found: _Found) -> list[Size]:
    """All models stay and take turns; the sizes that are left when one does not fit beside the others."""
    sizes, protocol = measuring.sizes, measuring.protocol
    models = {name: measuring.load(name) for name in found.names()}
    for number, size in enumerate(sizes):
        names = [name for name in measuring.names if found.fits(name, size)]
        runs: dict[str, list[TimedRun]] = {name: [] for name in names}
        with _Room() as room:
            timed = {name: measuring.timed(models[name], size) for name in names}
            for name in there_and_back(names, protocol.warm_up):
                timed[name].run()
            for name in there_and_back(names, protocol.repeats):
                runs[name].append(timed[name].run())
        if room.ran_out:
            return sizes[number:]
        for name in names:
            found.add(name, size, "together", protocol.repeats, runs[name])
        found.tell(size)
        measuring.finished(size, {name: found.record(name, size) for name in measuring.names})
    return []


def _one_by_one(measuring: Measuring, found: _Found, sizes: Sequence[Size]) -> None:
    """Each model is loaded once in each round and goes through all sizes that fit."""
    protocol = measuring.protocol
    count = math.ceil(protocol.repeats / ROUNDS)
    for name in there_and_back(found.names(), ROUNDS):
        model = measuring.load(name)
        for size in sizes:
            if not found.fits(name, size):
                continue
            with _Room() as room:
                timed = measuring.timed(model, size)
                for _ in range(protocol.warm_up):
                    timed.run()
                runs = [timed.run() for _ in range(count)]
            if room.ran_out:
                timed = None
                found.full(name, size)
                give_back(measuring.device)
            else:
                found.add(name, size, "in turn", ROUNDS, runs)
        model = timed = None
        give_back(measuring.device)
    for size in sizes:
        found.tell(size)


class _Room:
    """A context in which running out of memory ends the work and is noted; behind it nothing of the error is held."""

    ran_out = False

    def __enter__(self) -> _Room:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        self.ran_out = error is not None and ran_out(error)
        return self.ran_out


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """The median, the ends and the quartiles; of a single run all are the same."""
    several = seconds if len(seconds) > 1 else [*seconds, *seconds]
    lower, median, upper = statistics.quantiles(several, method="inclusive")
    return {
        "median": median,
        "lowest": min(seconds),
        "highest": max(seconds),
        "lower_quartile": lower,
        "upper_quartile": upper,
    }


def _words(size: Size) -> str:
    return f"batch {size.batch}, {size.new_tokens} new tokens"
