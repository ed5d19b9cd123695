"""What the cost of running is measured on: which size takes no less than another, and where prompts come from."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.evaluation.protocol import CostProtocol, Size, prompts, require_positions


def test_sizes_come_with_the_smallest_first_and_once():
    protocol = CostProtocol(12, (16, 4), (8, 1, 8), warm_up=0, repeats=1)
    assert protocol.sizes == [Size(4, 1), Size(4, 8), Size(16, 1), Size(16, 8)]


def test_a_size_holds_those_that_it_exceeds_in_nothing():
    assert Size(16, 8).holds(Size(16, 8)) and Size(16, 8).holds(Size(4, 8)) and Size(16, 8).holds(Size(16, 1))
    assert not Size(16, 1).holds(Size(4, 8)) and not Size(4, 8).holds(Size(16, 1))


def test_prompts_are_pieces_of_the_text_and_differ():
    text = torch.arange(100, 110).view(2, 5)
    assert prompts(text, 3, 2).tolist() == [[100, 101], [102, 103], [104, 105]]
    assert prompts(text, 2, 8).tolist() == [[*range(100, 108)], [108, 109, *range(100, 106)]], "not from its beginning"
    with pytest.raises(RegrowError, match="no held-out text"):
        prompts(text[:0], 1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens 0"),
        ({"new_tokens": (16, 1)}, "new_tokens 1; it must be 2"),
        ({"batches": (0,)}, "batches 0"),
        ({"warm_up": -1}, "warm_up -1"),
        ({"repeats": 0}, "repeats 0"),
    ],
)
def test_refuses_what_cannot_be_measured(change, message):
    with pytest.raises(RegrowError, match=message):
        CostProtocol(**{"prompt_tokens": 4, "new_tokens": (2,), "batches": (1,), "warm_up": 0, "repeats": 1} | change)


def test_refuses_more_tokens_than_positions_where_something_is_measured(fresh_model):
    model = fresh_model()
    positions = model.config.max_position_embeddings
    require_positions(CostProtocol(12, (positions - 12,), (1,), 0, 1), model)
    require_positions(CostProtocol(12, (positions,), (), 0, 1), model)
    with pytest.raises(RegrowError, match=f"{positions + 1}, but the model has only {positions} positions"):
        require_positions(CostProtocol(12, (4, positions - 11), (1,), 0, 1), model)
