"""What a person is told of what is trained, and on which loss."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.head import find_head
from pipeline.model.loss import router_coefficient
from pipeline.training.reach import probe, unreached
from pipeline.training.trained import told_of
from tests.families import build


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {}, []),
        ("mixtral", {"output_router_logits": True}, ["auxiliary loss is added, with coefficient 0.001"]),
        ("mixtral", {}, ["auxiliary loss (coefficient 0.001) is off"]),
        ("llama4", {"output_router_logits": True}, ["Llama4ForCausalLM computes no auxiliary loss for its router"]),
    ],
)
def test_what_is_trained_and_on_which_loss_is_told(family, changes, said):
    model = build(family, **changes)
    model.spare = torch.nn.Linear(3, 4)
    output = probe(model)
    coefficient = router_coefficient(model.config) if getattr(output, "aux_loss", None) is not None else None
    told = list(told_of(model, unreached(model, output), [], coefficient, find_head(model)))
    expected = ["16 parameters that text does not reach stay as they are: spare", *said]
    assert len(told) == len(expected) and all(part in line for part, line in zip(expected, told, strict=True)), told


def test_tensors_that_are_trained_in_less_precision_are_told():
    (line,) = told_of(build("llama"), {}, [f"gate.{number}" for number in range(5)], None, find_head(build("llama")))
    assert line.startswith("5 tensors that the pruned model keeps in float32 are trained in bfloat16"), line
    assert "gate.0, gate.1, gate.2, ...; train.zero_stage=0" in line, line


def test_a_head_that_is_not_known_is_told():
    (line,) = told_of(build("llama"), {}, [], None, None)
    assert line.startswith("what LlamaForCausalLM does behind its head is not known"), line
