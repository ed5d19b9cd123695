"""Deterministic kernels end with their block, whatever ends it."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.determinism import deterministic


def settings() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("wanted", [True, False])
def test_the_settings_hold_inside_alone(wanted):
    before = settings()
    with deterministic(wanted):
        assert settings() == ((True, False) if wanted else before)
    assert settings() == before
    with pytest.raises(KeyError), deterministic(wanted):
        raise KeyError
    assert settings() == before, "an error left them on"
