"""The closed form against torch's least squares, and what cannot be solved."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.training.regression import Regression, shares

INPUTS, OUTPUTS, TOKENS = 12, 5, 200


def tokens(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, residuals and wanted states in fp32; the first token's are a thousand times as long."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn((TOKENS, width), generator=generator) for width in (INPUTS, OUTPUTS, OUTPUTS)]
    for each in made:
        each[0] *= 1000
    return made[0], made[1], made[2]


def least_squares(ridge: float, bias: bool) -> torch.Tensor:
    """(OUTPUTS, inputs): by torch.linalg.lstsq, the ridge as further equations."""
    entering, missing, wanted = (each.double() for each in tokens())
    lengths = wanted.norm(dim=1, keepdim=True)
    if bias:
        entering = torch.cat([entering, torch.ones((TOKENS, 1), dtype=torch.float64)], dim=1)
    entering, missing = entering / lengths, missing / lengths
    stiffness = (ridge * entering[:, :INPUTS].square().sum(dim=0).mean()).sqrt()
    held = stiffness * torch.eye(entering.shape[1], dtype=torch.float64)[:INPUTS]
    zeros = torch.zeros((INPUTS, OUTPUTS), dtype=torch.float64)
    return torch.linalg.lstsq(torch.cat([entering, held]), torch.cat([missing, zeros])).solution.T


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ridge", [1e-9, 0.1, 10])
def test_the_change_is_what_least_squares_gives_however_the_tokens_are_cut(bias, ridge):
    expected = least_squares(ridge, bias)
    for pieces in (1, 7):
        sums = Regression(INPUTS, OUTPUTS, bias=bias)
        for part in zip(*(each.chunk(pieces) for each in tokens()), strict=True):
            sums.add(*part)
        weight, offset = sums.solve(ridge)
        found = weight if offset is None else torch.cat([weight, offset[:, None]], dim=1)
        assert sums.tokens == TOKENS and found.dtype == torch.float64
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9), (found - expected).abs().max()


def test_an_endless_ridge_changes_nothing_but_a_bias():
    sums = Regression(INPUTS, OUTPUTS, bias=True)
    sums.add(*tokens())
    weight, offset = sums.solve(1e12)
    assert weight.abs().max() < 1e-9 < offset.abs().max()


def test_inputs_that_span_nothing_are_refused():
    entering, missing, wanted = tokens()
    sums = Regression(INPUTS, OUTPUTS, bias=False)
    sums.add(torch.zeros_like(entering), missing, wanted)
    with pytest.raises(RegrowError, match=r"cannot be solved.*raise train\.healing\.ridge"):
        sums.solve(0.1)
    sums.add(entering, torch.full_like(missing, torch.inf), wanted)
    with pytest.raises(RegrowError, match="are not finite"):
        sums.solve(0.1)


def test_a_share_is_of_the_wanted_state():
    found = shares(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 10.0], [0.0, 0.0]]))
    assert found.tolist() == [0.5, 0.0]
