"""What healing has found: in words, and kept in files that a later start reads."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.healed import HealedBlock, Progress


def found(**changes: object) -> HealedBlock:
    return HealedBlock(
        **{
            "block": 4,
            "removed": [5, 6],
            "layer": "mlp.down_proj",
            "tokens": 1000,
            "before": 0.4,
            "after": 0.25,
            "kept": True,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "healed block 4 (behind it 5 to 6 are gone): relative error 0.4000 -> 0.2500 on kept text"),
        ({"removed": [5]}, "healed block 4 (behind it 5 is gone): relative error 0.4000 -> 0.2500 on kept text"),
        (
            {"removed": []},
            "healed block 4 (what stood before it is gone): relative error 0.4000 -> 0.2500 on kept text",
        ),
        (
            {"after": 0.5, "kept": False},
            "block 4 (behind it 5 to 6 are gone) is left as it was: relative error 0.4000 -> 0.5000 on kept text",
        ),
    ],
)
def test_a_line_says_where_and_how_far(changes, line):
    assert found(**changes).told() == line


def test_what_was_kept_comes_back_to_the_bit(tmp_path):
    progress, layer, other = Progress(tmp_path), torch.nn.Linear(3, 2).bfloat16(), torch.nn.Linear(3, 2).bfloat16()
    assert progress.known(2) is None
    progress.keep(2, layer, found())
    again = Progress(tmp_path)
    assert again.known(2) == found() and again.known(1) is None
    again.restore(2, other, found())
    assert other.weight.equal(layer.weight) and other.bias.equal(layer.bias)


def test_a_layer_that_was_left_alone_has_no_weights_to_keep(tmp_path):
    progress, layer = Progress(tmp_path), torch.nn.Linear(3, 2)
    before = layer.weight.clone()
    progress.keep(0, layer, found(kept=False))
    assert [path.name for path in tmp_path.iterdir()] == ["healing-0000.json"]
    progress.restore(0, layer, progress.known(0))
    assert layer.weight.equal(before)
