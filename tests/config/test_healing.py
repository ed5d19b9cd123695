"""Keys of healing: nothing is healed by default, and odd values are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.config.healing import HealingSection
from pipeline.config.tree import TrainSection


def test_nothing_is_healed_by_default():
    assert TrainSection(tokens=1).heal == "none"


@pytest.mark.parametrize("odd", [{"sequences": 7}, {"ridge": 0}, {"length": 4}, {"rigde": 1}])
def test_odd_values_are_refused(odd):
    with pytest.raises(ValidationError):
        HealingSection(**odd)
