"""Learning from stored answers in real DeepSpeed engines, against a plain torch loop; and what is refused."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.training.recalled import Recalled
from tests.training.asked import LENGTH, new_store
from tests.training.cases import each
from tests.training.test_engine import assert_equal_to_the_plain_loop


@pytest.mark.parametrize("stage", each("recalled-{}-fp32", [1, 3]))
def test_training_from_answers_equals_the_plain_loop(measured, stage):
    """Written by two processes, read by two; the plain loop reads them alone, and makes whole shares of them."""
    found = measured(2)[f"recalled-{stage}-fp32"]
    assert_equal_to_the_plain_loop(found, f"answers under ZeRO {stage}")
    assert all(step["divergence"] > 0.1 for step in found["steps"]), "shows nothing"
    other = measured(2)["recalled-1-fp32"]["answers"]
    assert found["answers"] == other, "the teacher whose weights are split answers otherwise"
    assert found["dense"] == pytest.approx(found["steps"][0]["divergence"], rel=0.1), "no estimate of the divergence"


def test_a_micro_batch_needs_the_answers_on_its_rows(tmp_path):
    teaching, ids = Recalled(new_store(tmp_path), 0.5), torch.zeros(2, LENGTH, dtype=torch.int64)
    for known in (None, teaching.store.alike(LENGTH)):
        with pytest.raises(RegrowError, match="without the answers on its rows"), teaching.asked(ids, None, known):
            pass
    with teaching.asked(ids, None, teaching.store.alike(2 * LENGTH)) as answer:
        assert answer.lesson.tell(0, 5).counts.shape == (5, teaching.store.samples) and answer.states == ()
