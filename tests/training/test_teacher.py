"""Training beside a teacher in real DeepSpeed engines, against a plain torch loop with both models' whole logits."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.training.teacher import Teacher, Teaching
from pipeline.world import ALONE
from tests.training.cases import each
from tests.training.teaching import new_teacher
from tests.training.test_engine import assert_equal_to_the_plain_loop

TAUGHT = [*(f"taught-{stage}" for stage in range(4)), *(f"taught_split-{stage}" for stage in (1, 3))]


@pytest.mark.parametrize("case", each("{}-fp32", TAUGHT))
def test_training_beside_a_teacher_equals_the_plain_loop(measured, case):
    """Half of the loss is the divergence, at a temperature, and states are met; the teacher is whole or split."""
    found = measured(2)[f"{case}-fp32"]
    assert_equal_to_the_plain_loop(found, case)
    assert all(step["divergence"] > 0.1 and step["disagreement"] > 0.1 for step in found["steps"]), "shows nothing"


def test_each_document_is_taught_alone(measured):
    found, across = measured(2)["taught_within-1-fp32"], measured(2)["taught-1-fp32"]
    losses = [step["loss"] for step in found["steps"]]
    assert losses == pytest.approx(found["losses"], rel=1e-6)
    assert [step["grad_norm"] for step in found["steps"]] == pytest.approx(found["norms"], rel=1e-5)
    assert found["difference"] <= 1e-4 and found["cosine"] > 0.9999
    assert abs(losses[0] / across["losses"][0] - 1) > 1e-4, "whole rows have this loss too: shows nothing"


def test_in_bf16_it_stays_near(measured):
    found = measured(2)["taught-1-bf16"]
    assert [step["loss"] for step in found["steps"]] == pytest.approx(found["losses"], rel=1e-3)
    assert [step["grad_norm"] for step in found["steps"]] == pytest.approx(found["norms"], rel=1e-2)
    assert found["cosine"] > 0.99


def test_states_behind_the_last_block_are_met_where_both_models_end_in_it():
    """They come through the norm behind it: where the student's last block is not the teacher's, they have no like."""
    model = new_teacher(torch.float32)
    ids = torch.arange(24).view(2, 12)
    for kept, met in (((0, 2, 3), 3), ((0, 1, 2), 2)):
        student = copy.deepcopy(model).eval()
        student.model.layers = torch.nn.ModuleList(student.model.layers[block] for block in kept)
        teaching = Teaching(Teacher(copy.deepcopy(model), ALONE), 0.5, hidden=1.0, kept=kept)
        with torch.no_grad(), teaching.asked(ids, None) as answer:
            assert len(answer.states) == met
            if kept == (0, 1, 2):
                states = student(ids, output_hidden_states=True).hidden_states
                apart = float(answer.disagreement(states, ids))
                assert abs(apart) < 1e-4, f"blocks that are the same disagree: {apart}"


@pytest.mark.slow
def test_compiled_it_is_the_same(measured):
    found = measured(2)["taught_compiled-1-fp32"]
    assert_equal_to_the_plain_loop(found, "compiled beside a teacher")
    assert found["compiled"], "nothing was compiled"


@pytest.mark.parametrize("stage", each("resume_taught-{}-bf16", [0, 3]))
def test_resumed_beside_a_teacher_it_ends_in_the_same_bytes(measured, stage):
    found = measured(2)[f"resume_taught-{stage}-bf16"]
    assert found["equal"], f"ZeRO {stage}: a resumed run ends elsewhere"
    assert found["changed"] > 1e-3
    assert [step["divergence"] for step in found["whole"][2:]] == [step["divergence"] for step in found["rest"]]
