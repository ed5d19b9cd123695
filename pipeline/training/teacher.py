"""The teacher: a model that is asked about every micro-batch and is never trained.

It stands beside the student, whole on each device, or split over them by DeepSpeed's ZeRO 3, which keeps its weights in
host memory where that is asked for. What it gives is the states that come to its head: its logits are made a chunk at a
time, where the student's are, so that the whole of either is never there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from pipeline.data.stream.packing import Row
from pipeline.model.attention import attention_of, document_arguments, documents_known
from pipeline.model.head import Head, find_head, states_at
from pipeline.model.lesson import COMPILED, PLAIN, Lesson, with_lesson
from pipeline.model.loss import NO_TARGET
from pipeline.model.sampled import Sampled
from pipeline.training.library import load_deepspeed
from pipeline.world import World


class Teacher:
    """``model`` as a teacher. Every process makes one, and asks it at the same times.

    ``sharded``: its weights are split over the processes; ``offloaded``: and are kept in host memory.
    """

    def __init__(self, model: PreTrainedModel, world: World, *, sharded: bool = False, offloaded: bool = False):
        self.model = model.eval().requires_grad_(False)
        self.attention, self.dtype = attention_of(model), model.dtype
        self.head: Head | None = find_head(model)
        self._engine: Any = _split(model, offloaded) if sharded else None

    @contextlib.contextmanager
    def asked(
        self, input_ids: torch.Tensor, documents: Sequence[np.ndarray] | None, states: bool = False
    ) -> Iterator[tuple[Callable[[int, int], torch.Tensor], Sequence[torch.Tensor]]]:
        """Within the context what it says of a micro-batch (rows, T) int64: its logits of a range of the positions, row
        by row, (n, vocabulary) fp32; and, with ``states``, the embeddings and what each block gives, (rows x T, width).

        ``documents`` as the engine's backward takes them.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if documents is not None:
            inputs = document_arguments(input_ids, documents, self.attention)
        with (
            torch.no_grad(),
            torch.autocast(input_ids.device.type, enabled=False),
            documents_known(documents, self.attention, input_ids.device),
            contextlib.ExitStack() as within,
        ):
            taken = None if self.head is None else within.enter_context(states_at(self.head))
            runs = self.model if self._engine is None else self._engine
            output = runs(**inputs, use_cache=False, **({"output_hidden_states": True} if states else {}))
        flat = (output.logits if taken is None else taken[0]).flatten(0, -2)
        told = [state.flatten(0, -2) for state in output.hidden_states] if states else []
        with self._whole_head():
            yield (lambda start, stop: self._logits(flat[start:stop])), told

    def _logits(self, some: torch.Tensor) -> torch.Tensor:
        """Logits of states at the head, or of logits."""
        if self.head is None:
            return some.float()
        linear = self.head.linear
        with torch.no_grad():
            return self.head.logits(F.linear(some, linear.weight, linear.bias))

    def _whole_head(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the head's weights are whole on this device."""
        if self._engine is None or self.head is None:
            return contextlib.nullcontext()
        return load_deepspeed().zero.GatheredParameters(list(self.head.linear.parameters()))

    def close(self) -> None:
        """Give up the weights; the teacher is of no use afterwards."""
        weights = list(self.model.parameters())
        if self._engine is not None:
            self._engine.destroy()
        for weight in weights:
            vars(weight).clear()
            weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)


def _split(model: PreTrainedModel, offloaded: bool) -> Any:
    """DeepSpeed's engine that keeps a model's weights split over the processes, and trains nothing."""
    bf16 = model.dtype == torch.bfloat16
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": bf16},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": False,
            "stage3_param_persistence_threshold": 1e4,
            **({"offload_param": {"device": "cpu", "pin_memory": torch.cuda.is_available()}} if offloaded else {}),
        },
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    engine, *_ = load_deepspeed().initialize(model=model, config=settings)
    engine.eval()
    return engine


@dataclass(frozen=True)
class Answer:
    """What a teacher says of a micro-batch: the ``lesson`` for the student's head, and, where the states of its blocks
    are to be met, those of the blocks that the student has too, (N, width) each."""

    lesson: Lesson
    states: Sequence[torch.Tensor] = ()

    def disagreement(self, states: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """How far the student's states are from the teacher's, summed over the positions that have a target: () fp32.

        For each block the mean square of the difference of both, each divided by its root mean square: 2 - 2 cos of
        their angle; of these the mean over blocks. ``states`` are the student's embeddings and what each block gives,
        of which the last one may have no counterpart.
        """
        counted = targets.flatten() != NO_TARGET
        apart = [
            2 - 2 * F.cosine_similarity(own.flatten(0, -2).float(), known.float(), dim=1)
            for own, known in zip(states[1:], self.states, strict=False)
        ]
        return (torch.stack(apart).mean(dim=0) * counted).sum()


@dataclass(frozen=True)
class Teaching:
    """A teacher and what is learnt from it: ``share`` of the loss is the divergence from it, at ``temperature``;
    ``hidden`` times the disagreement of states is added, where ``kept`` names the teacher's block for each of the
    student's, in their order."""

    teacher: Teacher
    share: float
    temperature: float = 1.0
    hidden: float = 0.0
    kept: tuple[int, ...] = ()
    judge: Callable[..., Any] = with_lesson

    def compiled(self, function: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Teaching:
        """The same, with what computes the loss compiled by ``function``."""
        return replace(self, judge=function(self.judge))

    def known(self, rows: Sequence[Row]) -> Sampled | None:
        """What is known of rows before the teacher is asked: nothing."""
        return None

    @contextlib.contextmanager
    def asked(
        self, input_ids: torch.Tensor, documents: Sequence[np.ndarray] | None, known: Sampled | None = None
    ) -> Iterator[Answer]:
        """Within the context the teacher's answer on a micro-batch (rows, T) int64."""
        with self.teacher.asked(input_ids, documents, states=self.hidden > 0) as (tell, states):
            entry_bytes = PLAIN if self.judge is with_lesson else COMPILED
            lesson = Lesson(tell, self.share, self.temperature, self.judge, entry_bytes)
            yield Answer(lesson, [states[block + 1] for block in self._met(len(states) - 1)] if states else ())

    def _met(self, blocks: int) -> tuple[int, ...]:
        """The blocks, of so many of the teacher's, whose states are met. Those of a model's last block come through the
        norm behind it: they are met where both models end in the same block."""
        return self.kept if self.kept[-1] == blocks - 1 else self.kept[:-1]

    def close(self) -> None:
        """Give up the teacher."""
        self.teacher.close()
