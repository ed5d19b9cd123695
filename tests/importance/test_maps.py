"""Maps for the blocks that go, as a notebook asks for them: what replace_blocks takes, and better than none."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.evaluation.notebook import perplexity
from pipeline.importance.linear import fit_windows, replacement_errors
from pipeline.importance.maps import fit_maps
from pipeline.model.blocks import remove_blocks
from pipeline.model.replacement import replace_blocks
from tests.families import BLOCKS, VOCABULARY, build


def text(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, 16), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return build("llama")


def test_the_maps_are_those_of_the_runs_and_the_model_takes_them(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maps = fit_maps(model, text(24, 1).split(6), [4, 2, 3], progress=False)
    assert list(maps) == [2] and (maps[2].shape, maps[2].dtype) == ((32, 32), torch.float32)
    assert maps[2].equal(fit_windows(model, text(24, 1).split(6), [(2, 3)])[2, 3])
    assert all(value.equal(before[name]) for name, value in model.state_dict().items()), "the model has changed"
    errors = replacement_errors(model, [text(8, 2)], [(2, 3)], {(2, 3): maps[2]})[2, 3]
    assert sum(errors.mapped) < sum(errors.plain), "the map is worth nothing on text that it was not fitted on"
    smaller = replace_blocks(deepcopy(model), [2, 3, 4], maps)
    assert len(smaller.model.layers) == BLOCKS - 3 and smaller.config.regrow["linear"][0]["folded_into"] == 1
    plain = remove_blocks(deepcopy(model), [2, 3, 4])
    one, other = (perplexity(each, text(8, 2), progress=False)["value"] for each in (smaller, plain))
    assert one != other


def test_a_run_at_the_start_has_no_map_and_alone_is_refused(model):
    assert list(fit_maps(model, text(24, 1), [0, 3])) == [3]
    with pytest.raises(RegrowError, match=r"of blocks \[0, 1\] none follows one that stays.*remove_blocks"):
        fit_maps(model, text(24, 1), [0, 1])


@pytest.mark.parametrize(
    ("given", "removed", "words"),
    [
        (text(2, 1), [3], r"32 tokens .* at least 256 are needed"),
        ("a text", [3], r"batches: ids are wanted, got a text"),
        (text(24, 1), [3, 3], "an index stands twice"),
        (text(24, 1), 3, "a list of whole numbers is wanted"),
        ([1, 2], text(24, 1), "^blocks Tensor: a list of whole numbers is wanted"),
        (text(24, 1), [6], "the model has blocks 0 to 5"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model, given, removed, words):
    with pytest.raises(RegrowError, match=words):
        fit_maps(model, given, removed)
