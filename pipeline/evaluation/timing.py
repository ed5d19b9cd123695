"""One timed run of greedy generation: to the first token, to the last, and the memory that it took on a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria

from pipeline.evaluation.figures import computed_by
from pipeline.evaluation.generation import greedy


@dataclass(frozen=True)
class TimedRun:
    """Tokens of each prompt and made after it; seconds to the first token and to the last, from the prompts on the
    device; bytes of the model's weights and the most that the run added on the GPU, None on a CPU."""

    prompt: int
    made: int
    first: float
    seconds: float
    memory: int | None

    @property
    def further(self) -> float:
        """Seconds for each token behind the first, of which there must be one."""
        return (self.seconds - self.first) / (self.made - 1)


class Timed:
    """A model and the prompts, (batch, tokens) int64, that it goes on from, exactly ``new_tokens`` tokens each time."""

    def __init__(self, model: PreTrainedModel, ids: torch.Tensor, new_tokens: int, device: torch.device):
        self._model, self._ids, self._new_tokens, self._device = model, ids.to(device), new_tokens, device
        # A dispatched model's weights lie on several GPUs, and not all of them on one.
        tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cuda"]
        self._gpus = {tensor.device for tensor in tensors} | ({device} if device.type == "cuda" else set())
        self._standing = sum(tensor.nbytes for tensor in tensors)

    def run(self) -> TimedRun:
        """Generate once. End-of-sequence tokens are ignored. The GPU is synchronised before the start, once the first
        token is chosen, and behind the last one."""
        with greedy(self._model, self._new_tokens, None) as generate:
            first = _FirstToken(self._device)
            _synchronise(self._device)
            before = {gpu: _watch(gpu) for gpu in self._gpus}
            start = time.perf_counter()
            output = generate(self._ids, [first])
            _synchronise(self._device)
            seconds = time.perf_counter() - start
        memory = None
        if before:
            # Other models' weights may stand there too.
            memory = self._standing + sum(torch.cuda.max_memory_allocated(gpu) - was for gpu, was in before.items())
        prompt = self._ids.shape[1]
        return TimedRun(prompt, output.shape[1] - prompt, first.at - start, seconds, memory)


def timed_on(device: torch.device, dtype: str) -> dict[str, Any]:
    """What a time is of, beside the model and the work: ``device`` (the GPU's name, or "cpu"), ``threads`` of the one
    process that is timed (None on a GPU), ``dtype``."""
    computed = computed_by(device)
    return {"device": computed["device"], "threads": computed["threads"], "dtype": dtype}


def there_and_back(names: Sequence[str], rounds: int) -> Iterator[str]:
    """The names in turn, so many times, the order turned round each time: none always follows the same one."""
    for number in range(rounds):
        yield from names if number % 2 == 0 else reversed(names)


class _FirstToken(StoppingCriteria):
    """Notes when the first token was there; stops nothing. Generation asks it behind each token."""

    def __init__(self, device: torch.device):
        self._device = device
        self._on: torch.Tensor | None = None
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._on is None:
            _synchronise(self._device)
            self.at = time.perf_counter()
            self._on = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self._on


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _watch(device: torch.device) -> int:
    """Begin to count a GPU's memory anew; what is allocated there now."""
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
