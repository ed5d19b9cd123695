"""What a lesson makes of a head's states, held against whole logits and torch's own functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.model.head import Head, losses_at
from pipeline.model.lesson import Lesson
from pipeline.model.loss import NO_TARGET

TOKENS, WIDTH = 48, 24
#: Of whole logits (TOKENS, vocabulary) and targets: loss, divergence and objective, summed over targets.
Plain = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def assert_those_of_whole_logits(
    lesson: Lesson, plain: Plain, vocabulary: int, scale: float, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values to 1e-5 and gradients to 1e-5 of their norm, with some targets left out. Returns whole logits, targets,
    and their divergence."""
    torch.manual_seed(vocabulary)
    linear, states = nn.Linear(WIDTH, vocabulary), torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    head, targets = Head(linear, scale, cap), torch.randint(0, vocabulary, (1, TOKENS))
    targets[0, 3:9] = NO_TARGET
    logits = head.logits(linear(states))[0]
    loss, divergence, objective = plain(logits, targets[0])
    (objective / 7).backward()
    wanted = [tensor.grad.clone() for tensor in (states, linear.weight, linear.bias)]
    states.grad = None
    linear.zero_grad()
    with losses_at(head, targets, 1 / 7, lesson) as taken:
        linear(states)
    taken.objective.backward()
    for name, found, value in (
        ("loss", taken.total, loss),
        ("divergence", taken.divergence, divergence),
        ("objective", taken.objective, objective / 7),
    ):
        assert float(found) == pytest.approx(float(value), rel=1e-5), name
    for tensor, gradient in zip((states, linear.weight, linear.bias), wanted, strict=True):
        error = float((tensor.grad - gradient).norm() / gradient.norm())
        assert error < 1e-5, f"a gradient of shape {tuple(gradient.shape)} is off by {error:.1e} of its norm"
    return logits.detach(), targets[0], divergence
