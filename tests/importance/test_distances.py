"""Distances between the dense states, for every start and every n, against hooks on the blocks themselves."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.cut import Cut
from pipeline.importance.distances import AT_A_TOKEN, DISTANCES, StateDistances, distances_between
from pipeline.importance.selection import choose_window
from pipeline.importance.sweep import dense_states, removal_losses
from pipeline.model.blocks import find_blocks
from tests.families import BLOCKS, FAMILIES, VOCABULARY, build

LENGTH = 16


def text(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def inputs_and_outputs(model, ids):
    """What enters and what leaves each block, fp64, by hooks of the test's own."""
    entered, left = [], []

    def look(block, args, kwargs, output):
        entered.append((args[0] if args else kwargs["hidden_states"]).double())
        left.append((output[0] if isinstance(output, tuple) else output).double())

    handles = [block.register_forward_hook(look, with_kwargs=True) for block in find_blocks(model)]
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return entered, left


def straightforward(x, y, position):
    """The formulas as they stand in the papers, on states (B, T, d) in fp64: criterion -> mean over sequences."""
    cosines = torch.nn.functional.cosine_similarity(x, y, dim=-1).clamp(-1, 1)
    angles = cosines.arccos() / math.pi
    lengths = (y - x).pow(2).sum(dim=-1).sqrt()
    return {
        "block_influence": (1 - cosines).mean().item(),
        "angular_last": angles[:, position].mean().item(),
        "angular_mean": angles.mean().item(),
        "relative_magnitude": (lengths / y.pow(2).sum(dim=-1).sqrt()).mean().item(),
        "euclidean": lengths.mean().item(),
        "euclidean_last": lengths[:, position].mean().item(),
        "norm_ratio": (y.norm(dim=-1) / x.norm(dim=-1)).mean().item(),
        "normalised_mse": ((y - x).pow(2).mean(dim=-1) / y.pow(2).mean(dim=-1)).mean().item(),
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "neox"])
@pytest.mark.parametrize("position", [-1, 5])
def test_every_window_equals_brute_force_with_hooks(family, position):
    model, ids = build(family), text(3)
    entered, left = inputs_and_outputs(model, ids)
    distances = StateDistances(BLOCKS, position)
    removal_losses(model, ids, watch=distances)
    entries = distances.entries()
    assert set(entries) == set(DISTANCES)
    for start in range(BLOCKS):
        for n in range(1, BLOCKS - start + 1):
            # The window's output is what its last block returned: nothing of the next block, and no final norm.
            expected = straightforward(entered[start], left[start + n - 1], position)
            assert expected.keys() == entries.keys()
            for name, value in expected.items():
                found = entries[name]["windows"][start][n - 1]
                assert found == pytest.approx(value, rel=1e-4), f"{family}: {name} of {n} blocks from {start}"
    for name, entry in entries.items():
        assert [len(row) for row in entry["windows"]] == list(range(BLOCKS, 0, -1)), "a window past the last block"
        assert entry["scores"] == [row[0] for row in entry["windows"]], f"{name}: a block is not the window n = 1"
        assert torch.tensor(entry["sequence_scores"]).mean(dim=1).tolist() == pytest.approx(entry["scores"], rel=1e-6)
        assert (entry.get("position") == position) == (name in AT_A_TOKEN)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_best_start_of_n_blocks_is_that_of_n_blocks_and_not_of_its_neighbours(family):
    """short-transformers and LLM-Drop take the start of the (n + 1)-block windows; here that would be another."""
    model, ids = build(family), text(2)
    entered, left = inputs_and_outputs(model, ids)
    distances = StateDistances(BLOCKS)
    removal_losses(model, ids, watch=distances)
    brute = {
        (start, n): straightforward(entered[start], left[start + n - 1], -1)
        for start in range(BLOCKS)
        for n in range(1, BLOCKS - start + 1)
    }
    differs = at_the_end = 0
    for name, entry in distances.entries().items():
        windows = entry["windows"]
        for first, last in ((0, 0), (1, 0), (1, 1)):
            for n in range(1, BLOCKS - first - last + (first + last > 0)):
                starts = range(first, BLOCKS - last - n + 1)
                best = min(starts, key=lambda start, n=n, name=name: brute[start, n][name])
                chosen = choose_window(windows, Cut(remove=n, protect_first=first, protect_last=last))
                assert chosen == list(range(best, best + n)), f"{name}, {n} blocks, {first} and {last} protected"
                at_the_end += chosen[-1] == BLOCKS - 1
                longer = {start: windows[start][n] for start in starts if len(windows[start]) > n}
                differs += bool(longer) and min(longer, key=longer.__getitem__) != best
    assert differs, "the wrong row gives the same starts on this model: the test shows nothing"
    assert at_the_end, "no best window ends at the last block: the test does not reach there"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_last_window_does_not_see_the_final_norm(family):
    model, ids = build(family), text(1)
    norm = model.model.norm if family == "llama" else model.transformer.ln_f
    found = []
    for scale in (1.0, 7.0):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0, scale, len(norm.weight)))
        distances = StateDistances(BLOCKS)
        removal_losses(model, ids, watch=distances)
        found.append(distances.entries())
    assert found[0] == found[1], "the final norm's weight moved a distance"
    states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    normed = straightforward(states[-2].double(), states[-1].double(), -1)["block_influence"]
    assert normed != pytest.approx(found[0]["block_influence"]["scores"][-1], rel=1e-2), "the trap is not sprung here"


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_leaves_the_losses_as_they_are_and_the_model_bare(family):
    model, ids = build(family), text(2)
    watched = StateDistances(BLOCKS)
    assert torch.equal(removal_losses(model, ids, watch=watched), removal_losses(model, ids))
    alone = StateDistances(BLOCKS)
    dense_states(model, ids, alone)
    for name in DISTANCES:
        # The sweep's batches are wider: other kernels, other rounding.
        assert alone.entries()[name]["scores"] == pytest.approx(watched.entries()[name]["scores"], rel=1e-3)
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__), "left behind"
    assert not watched._states, "states of a batch are still held"


def test_batches_of_any_size_and_shares_of_any_process_make_the_same_entries():
    model, ids = build("llama"), text(5)
    whole, shared = StateDistances(BLOCKS), StateDistances(BLOCKS)
    dense_states(model, ids, whole)
    for share in ids.split(2):
        part = StateDistances(BLOCKS)
        dense_states(model, share, part)
        # As a stage keeps it between a kill and the resume.
        shared.add(StateDistances.from_json(json.loads(json.dumps(part.to_json()))))
    for name, entry in whole.entries().items():
        other = shared.entries()[name]
        assert other["order"] == entry["order"] and len(other["sequence_scores"][0]) == 5
        assert torch.tensor(other["sequence_scores"]).allclose(torch.tensor(entry["sequence_scores"]), rtol=1e-4)
    once, twice = whole.to_json(), StateDistances.from_json(whole.to_json()).to_json()
    assert once == twice
    with pytest.raises(RegrowError, match="no sequence was seen"):
        StateDistances(BLOCKS).entries()


def test_nearly_equal_states_keep_their_angle():
    """In a cosine rounded to fp32 an angle of 1e-4 is lost; the chord keeps it."""
    x = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    y = x + 1e-4 * torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(1))
    distances = StateDistances(1)
    distances(0, x), distances(1, y)
    expected = straightforward(x.double(), y.double(), -1)
    for name in ("angular_mean", "block_influence"):
        assert distances.entries()[name]["scores"][0] == pytest.approx(expected[name], rel=1e-2)
    rounded = torch.nn.functional.cosine_similarity(x, y, dim=-1).clamp(-1, 1).arccos().mean().item() / math.pi
    assert rounded != pytest.approx(expected["angular_mean"], rel=1e-2)
    same = StateDistances(1)
    same(0, x), same(1, x.clone())
    scores = {name: entry["scores"] for name, entry in same.entries().items()}
    assert scores.pop("norm_ratio") == [1.0]
    assert all(score == [0.0] for score in scores.values()), "equal states are apart"


def test_memory_does_not_grow_with_the_sequences():
    model = build("llama")
    sizes = []
    distances = StateDistances(BLOCKS)
    for seed in range(3):
        dense_states(model, text(2, seed), distances)
        sizes.append(sum(values.numel() for values in distances.sums.values()) + len(distances._states))
    assert len(set(sizes)) == 1
    assert all(len(rows) == 6 and len(rows[0]) == BLOCKS for rows in distances.sequences.values())


def test_a_state_of_zeros_has_no_direction():
    """A padding token's embedding is zeros: cos is 0 to any other state, and two of them are the same."""
    states = torch.zeros(3, 1, 4)
    states[2, 0] = torch.tensor([1.0, 2.0, 0.0, 0.0])
    measured = distances_between(states)
    assert measured["block_influence"][1, 2].item() == pytest.approx(1) and measured["block_influence"][0, 1] == 0
    assert measured["angular_last"][0, 2].item() == pytest.approx(0.5) and measured["angular_last"][0, 1] == 0
    assert measured["norm_ratio"][0, 2] == measured["norm_ratio"][0, 1] == 1, "nothing is so many times as long"
