"""Batches: this process's part of each global batch, in micro-batches, read while the device is still at work."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.stream.packing import Row
from pipeline.model.loss import document_targets
from pipeline.model.sampled import Sampled
from pipeline.training.engine import Engine


@dataclass(frozen=True)
class Sample:
    """A row that was trained on: its number, its lane, and the first 16 hex digits of its ids' sha256 (int64)."""

    index: int
    lane: int
    sha256: str

    @classmethod
    def of(cls, row: Row) -> Sample:
        """The sample that a row is."""
        return cls(row.index, row.lane, hashlib.sha256(row.input_ids.tobytes()).hexdigest()[:16])


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together: their ids (rows, T) int64, in page-locked memory where a GPU fetches
    them while it computes; where documents begin in each, None where a row is one text; which tokens but the first of a
    row are targets (rows, T - 1) bool, None where all are; and what is ``known`` of a teacher's answer on them, None
    where it is still to be asked, or there is none."""

    rows: list[Row]
    ids: torch.Tensor
    documents: list[np.ndarray] | None
    counted: torch.Tensor | None
    known: Sampled | None = None

    @classmethod
    def of(
        cls, rows: list[Row], device: torch.device, within_documents: bool, known: Sampled | None = None
    ) -> MicroBatch:
        """The micro-batch of rows of one length."""
        ids = torch.from_numpy(np.stack([row.input_ids for row in rows]))
        documents = [row.cu_seqlens for row in rows] if within_documents else None
        counted = None if documents is None else document_targets(documents, ids.shape[1])
        if rows[0].counted is not None:
            stated = torch.from_numpy(np.stack([row.counted[1:] for row in rows]))
            counted = stated if counted is None else counted & stated
        if device.type == "cuda":
            ids, known = ids.pin_memory(), None if known is None else known.pinned()
        return cls(rows, ids, documents, counted, known)

    @property
    def targets(self) -> int:
        """Target tokens: all but the first of each row, or of each document in it, and but prompts and padding."""
        return self.ids[:, 1:].numel() if self.counted is None else int(self.counted.sum())


class ReadAhead:
    """This process's part of each global batch, in order; that of the next step while the device is still at work.

    What goes wrong in reading ahead is raised where its step begins: the step before it is done by then.
    """

    def __init__(self, engine: Engine, rows: Iterator[Row], within_documents: bool, at: Callable[[str], None]):
        self._engine, self._rows, self._within, self._at = engine, rows, within_documents, at
        self._ahead: list[MicroBatch] | Exception | None = None
        self._seconds = 0.0

    def take(self, step: int) -> list[MicroBatch]:
        """The micro-batches of the update behind ``step``."""
        found, self._ahead = self._ahead, None
        if isinstance(found, Exception):
            raise found
        return self._read(step) if found is None else found

    def ahead(self, step: int) -> None:
        """Read now what ``take(step)`` is to give."""
        try:
            self._ahead = self._read(step)
        except Exception as error:
            self._ahead = error

    def waited(self) -> float:
        """Seconds of reading since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _read(self, step: int) -> list[MicroBatch]:
        begin, taken = time.perf_counter(), []
        for number in range(1, self._engine.accumulation + 1):
            note_micro_batch(self._at, self._engine, step, "reading", number)
            rows = [next(self._rows) for _ in range(self._engine.micro_batch)]
            teaching = self._engine.teaching
            known = None if teaching is None else teaching.known(rows)
            taken.append(MicroBatch.of(rows, self._engine.world.device, self._within, known))
        self._seconds += time.perf_counter() - begin
        return taken


def note_micro_batch(at: Callable[[str], None], engine: Engine, step: int, doing: str, number: int) -> None:
    """Notes, by its number, which micro-batch of the update behind ``step`` is at work."""
    at(f"step {step + 1}: {doing} micro-batch {number} of {engine.accumulation}")
