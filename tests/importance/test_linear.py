"""Linear replacement against torch's least squares, against a model whose MLP is really folded, and its refusals."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.linear import fit_windows, linear_entry, replacement_errors
from pipeline.importance.sweep import dense_states
from pipeline.model.blocks import find_blocks
from pipeline.model.replacement import replace_blocks
from tests.families import BLOCKS, VOCABULARY, build

WIDTH = 32
LENGTH = 16


def text(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def projection(block):
    return block.mlp.down_proj if hasattr(block.mlp, "down_proj") else block.mlp.c_proj


def states_of(model, ids):
    states: list[torch.Tensor] = []
    dense_states(model, ids, lambda _, state: states.append(state.clone()))
    return states


@torch.no_grad()
def outputs_of(model, ids, index):
    kept = []
    handle = projection(find_blocks(model)[index]).register_forward_hook(lambda _, args, output: kept.append(output))
    model(ids, use_cache=False)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("window", [(2, 1), (1, 3), (3, 3)])
def test_the_map_is_the_least_squares_solution_however_the_text_is_cut(family, window):
    model, ids = build(family), text(24)
    start, length = window
    states, moved = states_of(model, ids), outputs_of(model, ids, start - 1).flatten(0, 1).double()
    change = (states[start + length] - states[start]).flatten(0, 1).double()
    # A token's error counts by its share of the state: its equation is divided by that state's length.
    lengths = states[start + length].flatten(0, 1).double().norm(dim=1, keepdim=True)
    solution = torch.linalg.lstsq(moved / lengths, change / lengths).solution
    expected = torch.eye(WIDTH, dtype=torch.float64) + solution.T
    for batches in ([ids], ids.split(5)):
        maps = fit_windows(model, batches, [window], ridge=0)
        assert maps[window].dtype == torch.float32 and maps[window].shape == (WIDTH, WIDTH)
        assert torch.allclose(maps[window].double(), expected, rtol=1e-3, atol=1e-4), f"{window} of {family}"
    # On the very tokens of the fit the map cannot be worse than none; the ridge leads to none.
    stiff = fit_windows(model, [ids], [window], ridge=1e9)[window]
    assert torch.allclose(stiff, torch.eye(WIDTH), atol=1e-4), "an endless ridge is not plain removal"


def test_folded_into_the_projection_the_map_gives_the_state_that_was_scored():
    """What surgery does with the map: the shortened model makes the state r + M m, with the errors that were told."""
    model, ids, held_out = build("llama"), text(24), text(4, seed=2)
    window = (2, 3)
    maps = fit_windows(model, [ids], [window])
    errors = replacement_errors(model, [held_out], [window], maps)[window]
    dense = states_of(model, held_out)[5]
    shares = {}
    for name, matrix in (("mapped", maps[window]), ("plain", torch.eye(WIDTH))):
        cut = deepcopy(model)
        replace_blocks(cut, [2, 3, 4], {2: matrix})
        reached = states_of(cut, held_out)[2]
        shares[name] = ((dense - reached).norm(dim=-1) / dense.norm(dim=-1)).mean(dim=1).tolist()
    assert errors.mapped == pytest.approx(shares["mapped"], rel=1e-3)
    assert errors.plain == pytest.approx(shares["plain"], rel=1e-3)
    assert shares["mapped"] != pytest.approx(shares["plain"], rel=1e-2), "the map does nothing here"


def test_a_window_that_is_linear_is_replaced_without_a_rest():
    """Blocks made to add a fixed linear map of the MLP's output before them: the fit finds that map."""
    model = build("llama")
    blocks = find_blocks(model)
    wanted = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5))
    before: list[torch.Tensor] = []
    blocks[1].mlp.down_proj.register_forward_hook(lambda _, args, output: before.append(output))
    blocks[2].forward = lambda hidden_states, *args, **kwargs: hidden_states + before[-1] @ wanted.T
    maps = fit_windows(model, [text(24)], [(2, 1)], ridge=0)
    assert torch.allclose(maps[2, 1], torch.eye(WIDTH) + wanted, atol=1e-2)
    errors = replacement_errors(model, [text(2, 9)], [(2, 1)], maps)[2, 1]
    assert max(errors.mapped) < 1e-3 < min(errors.plain)


def test_the_entry_has_every_start_and_judges_block_0_as_removed():
    model, fit, held_out = build("llama"), text(24), text(5, seed=2)
    entry = linear_entry(model, fit.split(7), held_out.split(2), lengths=[3])
    assert len(entry["scores"]) == BLOCKS and sorted(entry["order"]) == list(range(BLOCKS))
    assert torch.tensor(entry["sequence_scores"]).shape == (BLOCKS, 5)
    assert list(entry["windows"]) == ["1", "3"]
    for n, found in entry["windows"].items():
        assert len(found["scores"]) == len(found["without_map"]) == BLOCKS - int(n) + 1
        assert found["scores"][0] == found["without_map"][0], "block 0 has nothing before it that takes a map"
        assert found["best_start"] == min(range(1, BLOCKS - int(n) + 1), key=found["scores"].__getitem__)
    assert entry["scores"] == entry["windows"]["1"]["scores"]
    again = linear_entry(model, [fit], [held_out], lengths=[3])
    assert again["scores"] == pytest.approx(entry["scores"], rel=1e-4)
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks), "hooks were left behind"


def test_too_few_tokens_would_fit_exactly_and_are_refused():
    model, few = build("llama"), text(2)
    with pytest.raises(RegrowError, match=r"32 tokens .* at least 256 are needed .* 16 sequences of 16 tokens"):
        fit_windows(model, [few], [(1, 1)])
    with pytest.raises(RegrowError, match=r"^0 tokens"):
        fit_windows(model, [], [(1, 1)])
    fit_windows(model, [text(16)], [(1, 1)])
    with pytest.raises(RegrowError, match=r"window of 3 blocks from 4: the model has blocks 0 to 5"):
        fit_windows(model, [text(16)], [(4, 3)])
    with pytest.raises(RegrowError, match="no sequence is held out"):
        linear_entry(model, [text(16)], [])
    with torch.no_grad():
        projection(find_blocks(model)[0]).weight.zero_()
    with pytest.raises(RegrowError, match=r"1 blocks from 1 cannot be solved for"):
        fit_windows(model, [text(16)], [(1, 1)])
