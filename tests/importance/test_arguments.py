"""Arguments of a growing batch, by themselves; test_sweep.py tries them on whole models."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.arguments import repeated

ROW = torch.arange(6.0).view(2, 3)
TWICE = torch.cat([ROW, ROW])


def test_what_came_out_doubled_is_repeated_and_what_did_not_stays():
    cache, one = object(), torch.ones(1, 3)
    given = {"mask": ROW, "positions": (one, [ROW, None]), "cache": cache, "use": True}
    found = repeated(given, {**given, "mask": TWICE, "positions": (one.clone(), [TWICE, None])}, 3, "argument")
    assert torch.equal(found["mask"], torch.cat([ROW] * 3)) and torch.equal(found["positions"][1][0], found["mask"])
    assert found["positions"][0] is one, "what belongs to all sequences was copied"
    assert type(found["positions"]) is tuple and type(found["positions"][1]) is list
    assert (found["positions"][1][1], found["cache"], found["use"]) == (None, cache, True)


@pytest.mark.parametrize(
    "doubled",
    [
        torch.cat([ROW, ROW + 1]),
        ROW + 1,
        ROW.repeat(1, 2),
        TWICE.double(),
        None,
    ],
)
def test_what_is_neither_is_refused_by_name(doubled):
    with pytest.raises(
        RegrowError, match=r"argument mask is a tensor \(2, 3\) for a batch and .* neither the same nor"
    ):
        repeated({"mask": ROW}, {"mask": doubled}, 2, "argument")


def test_numbers_that_differ_are_refused():
    with pytest.raises(RegrowError, match="argument length is int 3 for a batch and int 6"):
        repeated({"length": 3}, {"length": 6}, 2, "argument")
