"""The loss beside a teacher, against plain torch on whole logits: values, gradients, and what is held."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model import head as room
from pipeline.model.head import Head, losses_at
from pipeline.model.lesson import PLAIN, Lesson, divergences
from pipeline.model.loss import NO_TARGET
from tests.model.objectives import TOKENS, WIDTH, assert_those_of_whole_logits


def plain(logits: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor, share: float, temperature: float):
    """Loss, divergence and objective, summed over targets, by torch's own functions and whole logits."""
    counted = targets != NO_TARGET
    common = min(logits.shape[1], taught.shape[1])
    loss = F.cross_entropy(logits, targets, ignore_index=NO_TARGET, reduction="sum")
    said = (logits[:, :common] / temperature).log_softmax(dim=1)
    meant = (taught[:, :common] / temperature).softmax(dim=1)
    divergence = F.kl_div(said[counted], meant[counted], reduction="sum")
    return loss, divergence, (1 - share) * loss + share * temperature**2 * divergence


@pytest.mark.parametrize(("share", "temperature"), [(1.0, 1.0), (0.5, 1.0), (0.3, 2.5)])
@pytest.mark.parametrize(
    ("vocabulary", "taught_vocabulary", "scale", "cap"),
    [(97, 97, 1.0, None), (1000, 1024, 0.25, None), (1024, 1000, 3.0, 1.5), (4096, 4096, 1.0, 2.0)],
)
@pytest.mark.parametrize("chunk", [6, TOKENS])
def test_values_and_gradients_are_those_of_whole_logits(
    monkeypatch, chunk, vocabulary, taught_vocabulary, scale, cap, share, temperature
):
    monkeypatch.setattr(room, "CHUNK", (room.PLAIN + PLAIN) * vocabulary * chunk)
    torch.manual_seed(taught_vocabulary)
    taught = 2 * torch.randn(TOKENS, taught_vocabulary)
    lesson = Lesson(lambda start, stop: taught[start:stop], share, temperature)
    assert_those_of_whole_logits(
        lesson, lambda logits, targets: plain(logits, taught, targets, share, temperature), vocabulary, scale, cap
    )


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn():
    linear, states = nn.Linear(WIDTH, 100), torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    taught = linear(states)[0].detach()
    lesson = Lesson(lambda start, stop: taught[start:stop], 1.0)
    with losses_at(Head(linear), torch.zeros(1, TOKENS, dtype=torch.int64), lesson=lesson) as taken:
        linear(states)
    taken.objective.backward()
    assert abs(float(taken.divergence)) < 1e-4 and float(states.grad.abs().max()) < 1e-6
    assert float(divergences(taught, taught.roll(1, dims=0), 1.0).min()) > 0, "unlike logits have no divergence"


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = function(*arguments, **(keywords or {}))
        for one in given if isinstance(given, tuple | list) else [given]:
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.nbytes)
        return given


def test_neither_model_s_whole_logits_are_ever_there(monkeypatch):
    """Of 64 tokens and 8,192 entries, chunks of 8: nothing is as large as the whole."""
    tokens, vocabulary = 64, 8192
    monkeypatch.setattr(room, "CHUNK", (room.PLAIN + PLAIN) * vocabulary * 8)
    linear, teacher = nn.Linear(4, vocabulary), nn.Linear(4, vocabulary)
    states, known = torch.randn(1, tokens, 4, requires_grad=True), torch.randn(tokens, 4)
    lesson = Lesson(lambda start, stop: teacher(known[start:stop]).detach(), 0.5)
    with Largest() as met, losses_at(Head(linear), torch.zeros(1, tokens, dtype=torch.int64), lesson=lesson) as taken:
        linear(states)
        taken.objective.backward()
    assert met.bytes <= 8 * vocabulary * 4, f"{met.bytes:,} bytes of one tensor: more than a chunk"
