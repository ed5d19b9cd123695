"""Asking ahead: a teacher is asked about each row once, and what is drawn from its answer is written.

What is drawn for a row is decided by the seed and the row's number, and the row goes through the teacher alone: whoever
asks, in however many processes, at whichever time, on the same hardware with as many threads writes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.stream.packing import Row
from pipeline.model.head import chunk_length
from pipeline.model.sampled import DRAWING, draw
from pipeline.training.answers import ROWS, AnswerStore, RowAnswer, hash_row
from pipeline.training.teacher import Teacher


@dataclass(frozen=True)
class Asking:
    """How a teacher is asked: its softmax is at ``temperature``, draws are decided by ``seed``, and each document of a
    row is read alone where ``within_documents`` says so."""

    temperature: float
    seed: int
    within_documents: bool


def answer(teacher: Teacher, row: Row, store: AnswerStore, asking: Asking, device: torch.device) -> RowAnswer:
    """What the teacher says of a row, asked about it alone."""
    ids = torch.from_numpy(row.input_ids)[None].to(device)
    uniforms = uniforms_of(asking.seed, row.index, store)
    length = chunk_length(len(uniforms), store.vocabulary, DRAWING)
    parts = []
    with teacher.asked(ids, [row.cu_seqlens] if asking.within_documents else None) as (tell, _):
        for start in range(0, len(uniforms), length):
            logits = tell(start, min(start + length, len(uniforms)))[:, : store.vocabulary]
            parts.append(draw(logits, uniforms[start : start + length], asking.temperature))
    drawn, counts, different, entropies = (np.concatenate(part) for part in zip(*parts, strict=True))
    return RowAnswer(hash_row(row.input_ids), drawn.astype(store.dtype), counts, different, entropies)


def uniforms_of(seed: int, row: int, store: AnswerStore) -> np.ndarray:
    """(row_length, samples) fp64 in [0, 1) for a row."""
    key = int.from_bytes(hashlib.sha256(f"answers {seed} {row}".encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key)).random((store.row_length, store.samples))


def ask(
    teacher: Teacher,
    rows: Iterator[Row],
    store: AnswerStore,
    asking: Asking,
    device: torch.device,
    at: Callable[[str], None] = lambda what: None,
) -> None:
    """Ask about this process's ``rows``, whole blocks of them or to the end of the run, and write the answers. A file
    that was there is written again. ``at`` is told before each row."""
    held: dict[int, list[tuple[Row, RowAnswer]]] = defaultdict(list)
    for row in rows:
        at(f"asking the teacher about row {row.index:,}")
        held[row.lane].append((row, answer(teacher, row, store, asking, device)))
        if len(held[row.lane]) == ROWS:
            _write(held.pop(row.lane), store)
    for left in held.values():
        _write(left, store)


def _write(answered: list[tuple[Row, RowAnswer]], store: AnswerStore) -> None:
    last, _ = answered[-1]
    store.write(last.lane, last.index // store.block, [given for _, given in answered], last.cursor)
