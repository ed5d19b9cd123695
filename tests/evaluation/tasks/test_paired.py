"""Two models on the same items, against the test as it is told in books and against drawn coins."""

from __future__ import annotations

import random

import pytest

from pipeline.evaluation.tasks.paired import compare, compare_models, sign_test


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (8, 1, 2 * 10 / 512),
        (1, 8, 2 * 10 / 512),
        (10, 0, 2 / 1024),
    ],
)
def test_the_sign_test_is_exact(better, worse, p):
    assert sign_test(better, worse) == p


def test_p_is_the_share_of_coins_that_split_so_far():
    draw, count, least = random.Random(0), 40, 26
    throws = [sum(draw.random() < 0.5 for _ in range(count)) for _ in range(20_000)]
    share = sum(heads >= least or heads <= count - least for heads in throws) / len(throws)
    assert sign_test(least, count - least) == pytest.approx(share, abs=0.01)


def test_large_counts_are_no_trouble():
    assert 0 < sign_test(5300, 4742) < 1e-6


def test_models_are_compared_item_by_item():
    items = {"dense": {"a": [1, 1, 0, 1], "b": []}, "pruned": {"a": [0, 1, 0, 0], "b": []}}
    found = compare_models(items)
    assert list(found) == ["pruned - dense"] and list(found["pruned - dense"]) == ["a"]
    assert found["pruned - dense"]["a"] == {"difference": -0.5, "better": 0, "worse": 2, "items": 4, "p": 0.5}
    with pytest.raises(ValueError):
        compare([1.0], [1.0, 0.0])
