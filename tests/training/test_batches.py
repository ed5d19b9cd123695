"""What a step took, as it is told of: rows and what they are known by."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import LaneCursor
from pipeline.training.batches import MicroBatch, Sample


def row(index: int, ids: list[int], **known: np.ndarray) -> Row:
    return Row(index, np.array(ids, dtype=np.int64), index % 4, LaneCursor(), **known)


def test_a_sample_is_known_by_its_ids():
    digest = hashlib.sha256(np.array([5, 6, 7], dtype="<i8").tobytes()).hexdigest()[:16]
    assert Sample.of(row(9, [5, 6, 7])) == Sample(index=9, lane=1, sha256=digest)


def test_targets_are_all_but_the_first_token_of_a_row_or_of_a_document():
    rows = [row(0, [1, 2, 3, 4], cu_seqlens=np.array([0, 3, 4], dtype=np.int32)), row(1, [5, 6, 7, 8])]
    device = torch.device("cpu")
    assert MicroBatch.of(rows, device, within_documents=False).targets == 6
    assert MicroBatch.of(rows, device, within_documents=True).targets == 5


def test_targets_are_what_counts_of_instruction_data():
    """The second and the third token of row 0, but the first is no target of a row."""
    counted = [np.array([True, True, True, False]), np.array([False, False, False, True])]
    rows = [row(index, [1, 2, 3, 4], counted=each) for index, each in enumerate(counted)]
    assert MicroBatch.of(rows, torch.device("cpu"), within_documents=False).targets == 3
