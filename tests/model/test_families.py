"""Every family: a model with blocks skipped, with blocks removed, and saved and reloaded are one model.

With and without a cache of keys and values, for blocks taken from the front, the middle, the end, and all three.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks, remove_blocks, skip_blocks
from pipeline.model.equivalence import cached_logits, full_logits, probe_ids
from pipeline.model.load import load_model
from tests.families import BLOCKS, FAMILIES, OTHERS, VOCABULARY, build

IDS = probe_ids(VOCABULARY, length=16)  # longer than the windows, which are of 8
CUTS: dict[str, list[list[int]]] = {
    **{family: [[0], [2, 3], [5], [0, 3, 5]] for family in FAMILIES},
    **{family: [[0, 3]] for family in OTHERS},
    # Block 1, of linear attention, comes first, or block 0, of full attention.
    "minimax": [[0, 3], [2, 3], [1, 2, 4]],
}
REFUSED = {"jamba": "JambaForCausalLM: these blocks cannot be removed.*class Jamba.* would become"}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def places(model: Any) -> list[set[int]]:
    """The indices that each block's modules hold, by whatever name."""
    return [
        {
            value
            for module in block.modules()
            for name, value in vars(module).items()
            if name in ("layer_idx", "layer_id") and isinstance(value, int)
        }
        for block in find_blocks(model)
    ]


def generated(model: Any, use_cache: bool) -> torch.Tensor:
    return model.generate(
        IDS[:, :12], min_new_tokens=6, max_new_tokens=6, do_sample=False, pad_token_id=2, use_cache=use_cache
    )


@pytest.mark.parametrize("family", [family for family in CUTS if family not in REFUSED])
def test_skipped_is_removed_is_reloaded(family, tmp_path):
    dense = build(family)
    before = full_logits(dense, IDS)
    numbered = places(dense)
    for removed in CUTS[family]:
        with skip_blocks(dense, removed):
            skipped, skipped_cached = full_logits(dense, IDS), cached_logits(dense, IDS, prefill=12)
        assert apart(before, skipped) > 1e-2, "the skipped blocks did nothing in this model: the test shows nothing"
        pruned = remove_blocks(deepcopy(dense), removed)
        full, cached = full_logits(pruned, IDS), cached_logits(pruned, IDS, prefill=12)
        assert full.equal(skipped), f"{removed}: a removed block is not a skipped one ({apart(skipped, full)})"
        assert apart(skipped_cached, cached) < 1e-6, f"{removed}: ... through the cache"
        assert apart(full, cached) < 1e-4, f"{removed}: the cache changes the logits"
        assert places(pruned) == numbered[: BLOCKS - len(removed)], f"{removed}: not renumbered"
    assert full_logits(dense, IDS).equal(before), "skipping left something behind"
    assert not any("forward" in block.__dict__ for block in find_blocks(dense))

    pruned.save_pretrained(tmp_path)
    reloaded = load_model(tmp_path, dtype=torch.float32)  # AutoModelForCausalLM, without remote code
    assert type(reloaded) is type(dense) and reloaded.config.num_hidden_layers == BLOCKS - len(removed)
    assert full_logits(reloaded, IDS).equal(full), "the saved model computes something else"
    assert cached_logits(reloaded, IDS, prefill=12).equal(cached)
    assert places(reloaded) == places(pruned)
    tokens = generated(reloaded, use_cache=True)
    assert tokens.shape == (2, 18) and tokens.equal(generated(reloaded, use_cache=False)), (
        "the cache changes what is generated"
    )


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_whose_config_cannot_describe_the_rest_is_refused_and_left_as_it_was(family):
    model = build(family)
    before, config = full_logits(model, IDS), model.config.to_dict()
    with pytest.raises(RegrowError, match=REFUSED[family]):
        remove_blocks(model, [0, 3])
    assert full_logits(model, IDS).equal(before) and model.config.to_dict() == config
    assert len(find_blocks(model)) == BLOCKS
