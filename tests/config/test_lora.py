"""The keys of adapters: the published values, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.config.lora import LoraSection


def test_the_defaults_are_those_of_shortened_llm():
    lora = LoraSection()
    assert (lora.rank, lora.alpha, lora.dropout, len(lora.targets)) == (8, 16, 0.05, 7)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"targets": []}, {"targets": ["q_proj", "q_proj"]}]
)
def test_what_makes_no_adapter_is_refused(wrong):
    with pytest.raises(ValidationError):
        LoraSection(**wrong)
