"""Walking block by block: what a block is given is what the whole forward gives it, and other blocks never run."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks
from pipeline.model.walking import block_arguments, take_hidden
from tests.families import BLOCKS, VOCABULARY, build

ROW = torch.arange(6.0).view(2, 3)


def test_the_hidden_state_is_first_or_named():
    assert take_hidden((ROW, 1), {"a": 2}) == (ROW, (1,), {"a": 2})
    hidden, args, kwargs = take_hidden((), {"hidden_states": ROW, "a": 2})
    assert hidden is ROW and (args, kwargs) == ((), {"a": 2})


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
@torch.no_grad()
def test_blocks_that_are_walked_through_give_what_the_whole_forward_gives(family):
    model = build(family)
    blocks, ids = find_blocks(model), torch.arange(40).view(2, 20) % VOCABULARY
    wanted: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda _, args, output: wanted.append(output[0] if type(output) is tuple else output)
        )
        for block in blocks
    ]
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    returns = 1 if family == "bloom" else 0
    state = None
    for index, block in enumerate(blocks):
        entering, args, kwargs = block_arguments(model, blocks, index, ids, returns)
        output = block(entering if state is None else state, *args, **kwargs)
        state = output[0] if isinstance(output, tuple) else output
        assert torch.equal(state, wanted[index]), f"{family}: block {index} gives another state than in the model"
    assert all("forward" not in vars(block) for block in blocks), "a stand-in was left behind"


def test_a_block_that_is_not_there_is_refused():
    model = build("llama")
    blocks = find_blocks(model)
    with pytest.raises(RegrowError, match=f"one forward ran {BLOCKS} blocks, the model has {BLOCKS}"):
        block_arguments(model, blocks, BLOCKS, torch.zeros((1, 3), dtype=torch.int64), 0)
