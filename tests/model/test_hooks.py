"""What looks into a model takes a dispatched one for what it is, and leaves its hooks where they were."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.dispatch import Dispatch
from pipeline.model.hollow import without_weights
from pipeline.model.hooks import input_device, is_dispatched, is_hollow, own_forward
from pipeline.model.load import load_model
from tests.families import build


@pytest.fixture
def spread(tmp_path):
    """A model with some of its weights on disk, the head's among them."""
    build("llama").save_pretrained(tmp_path)
    return load_model(tmp_path, dtype="float32", dispatch=Dispatch({}, 150_000, tmp_path / "offloaded"))


def test_weights_that_lie_elsewhere_are_not_missing(spread, tmp_path):
    hollow = without_weights(tmp_path, torch.float32, None, False)
    told = [(is_dispatched(model), is_hollow(model)) for model in (spread, hollow, build("llama"))]
    assert told == [(True, False), (False, True), (False, False)]
    assert spread.lm_head.weight.is_meta and input_device(spread) == torch.device("cpu")
    assert input_device(hollow) == torch.device("meta")


def test_a_forward_that_stands_in_finds_the_weights_and_goes(spread):
    plain = build("llama")
    for model in (spread, plain):
        head, states, seen = model.lm_head, torch.ones(1, 3, 32), []
        before = head(states)
        names = set(head.__dict__)

        def forward(given: torch.Tensor, head=head, seen=seen) -> torch.Tensor:
            seen.append(head.weight.is_meta)
            return given + 1

        with pytest.raises(ValueError, match="inside"), own_forward(head, forward):
            assert torch.equal(head(states), states + 1)
            raise ValueError("inside")
        assert seen == [False], "the weights were not there"
        assert torch.equal(head(states), before) and set(head.__dict__) == names
    assert spread.lm_head.weight.is_meta, "the weights stayed"
