"""Learning from a teacher's stored answers: the model itself is not there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.data.stream.packing import Row
from pipeline.errors import RegrowError
from pipeline.model.lesson import Lesson
from pipeline.model.sampled import COMPILED, PLAIN, Sampled, divergences_by_samples, with_samples
from pipeline.training.answers import AnswerStore
from pipeline.training.teacher import Answer


@dataclass(frozen=True)
class Recalled:
    """What ``Teaching`` is, where answers on all rows are in a ``store``: states are not among them."""

    store: AnswerStore
    share: float
    temperature: float = 1.0
    judge: Callable[..., Any] = with_samples
    hidden: ClassVar[float] = 0.0

    def compiled(self, function: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Recalled:
        """The same, with what computes the loss compiled by ``function``."""
        return replace(self, judge=function(self.judge))

    def known(self, rows: Sequence[Row]) -> Sampled:
        """What the store holds of rows. RegrowError where it does not hold it."""
        return self.store.told(rows)

    @contextlib.contextmanager
    def asked(
        self, input_ids: torch.Tensor, documents: Sequence[np.ndarray] | None, known: Sampled | None
    ) -> Iterator[Answer]:
        """Within the context the answer on a micro-batch, of which ``known`` is what the store holds."""
        if known is None or len(known.ids) != input_ids.numel():
            raise RegrowError("a micro-batch without the answers on its rows; hand over what known(rows) gives")
        told = known.to(input_ids.device)
        entry_bytes = PLAIN if self.judge is with_samples else COMPILED
        yield Answer(
            Lesson(told.between, self.share, self.temperature, self.judge, entry_bytes, divergences_by_samples)
        )

    def close(self) -> None:
        """Nothing is held that would have to be given up."""
