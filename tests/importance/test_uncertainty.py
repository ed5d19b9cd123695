"""Intervals that hold what they promise, and sets that are called noise when they are."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.cut import Cut
from pipeline.importance.uncertainty import intervals, near_noise, resampled_means, stability

FREE = {"protect_first": 0, "protect_last": 0}


def draw(means, sequences, noise, common, seed):
    """Losses (blocks, sequences): a mean for each block, noise of its own, and a hardness that all blocks share."""
    generator = torch.Generator().manual_seed(seed)
    own = noise * torch.randn(len(means), sequences, generator=generator, dtype=torch.float64)
    shared = common * torch.randn(sequences, generator=generator, dtype=torch.float64)
    return (torch.tensor(means, dtype=torch.float64)[:, None] + own + shared).tolist()


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        low, high = intervals(draw([2.0], 30, 1.0, 0.0, seed), level=0.9, resamples=400)[0]
        covered += low <= 2.0 <= high
    assert 165 <= covered <= 192, f"90% intervals hold the mean in {covered} of 200 draws"


def test_intervals_are_in_order_seeded_and_may_be_perplexities():
    losses = draw([1.0, 3.0], 10, 0.5, 0.2, 0)
    found = intervals(losses)
    assert found == intervals(losses) and found != intervals(losses, seed=1)
    for (low, high), row in zip(found, losses, strict=True):
        assert low < sum(row) / 10 < high
    assert intervals(losses, transform=math.exp) == [[math.exp(low), math.exp(high)] for low, high in found]
    means = resampled_means(torch.tensor(losses), resamples=50)
    assert means.shape == (50, 2)
    # The same sequences are drawn for every block.
    assert torch.allclose(resampled_means(torch.tensor([losses[0], losses[0]]), 50)[:, 0], means[:, 0])
    assert intervals([[2.0, 2.0, 2.0]]) == [[2.0, 2.0]]


def test_a_clear_set_is_settled_and_a_noisy_one_is_not():
    clear = stability(draw([1, 2, 3, 4, 5, 6], 20, 0.1, 3.0, 0), Cut(remove=2, **FREE))
    # What sequences share does not blur the differences, however large.
    assert clear["removed"] == [0, 1] and clear["settled"] and clear["unsettled"] == []
    assert clear["agreement"] == clear["same_set"] == 1 and clear["chances"] == [1, 1, 0, 0, 0, 0]
    assert clear["sequences_needed"] <= 20
    noisy = stability(draw([1, 2, 2.01, 4, 5, 6], 20, 0.3, 0.0, 0), Cut(remove=2, **FREE))
    assert not noisy["settled"] and [1, 2] in [sorted(pair) for pair in noisy["unsettled"]]
    assert 0.5 < noisy["agreement"] < 1 and noisy["sequences_needed"] > 20
    assert sum(noisy["chances"]) == pytest.approx(2) and noisy["chances"][0] == 1 and noisy["chances"][5] == 0


def test_the_number_of_sequences_that_would_settle_it_does_settle_it():
    means = [1.0, 2.0, 2.2, 4.0]
    few = stability(draw(means, 200, 1.0, 0.5, 1), Cut(remove=2, **FREE))
    needed = few["sequences_needed"]
    assert 50 < needed < 1000, needed
    settled = [
        stability(draw(means, 4 * needed, 1.0, 0.5, seed), Cut(remove=2, **FREE), resamples=50)["settled"]
        for seed in range(20)
    ]
    assert sum(settled) >= 18, "four times as many sequences as estimated leave it open"
    open_still = [
        stability(draw(means, max(2, needed // 20), 1.0, 0.5, seed), Cut(remove=2, **FREE), resamples=50)["settled"]
        for seed in range(20)
    ]
    assert sum(open_still) <= 5, "a twentieth of them settles it already"


def test_blocks_that_never_differ_cannot_be_settled():
    same = stability([[1.0, 2.0], [1.0, 2.0], [5.0, 6.0]], Cut(remove=1, **FREE))
    assert same["removed"] == [0] and same["unsettled"] == [[0, 1]] and same["sequences_needed"] is None
    assert near_noise([[1.0, 2.0], [1.0, 2.0], [5.0, 6.1]], [0, 1, 2]) == [[0, 1]]


def test_the_protect_rule_holds_in_every_resample_and_can_leave_no_choice():
    values = draw([1, 1, 1, 1, 1, 1], 10, 1.0, 0.0, 0)
    found = stability(values, Cut(remove=2, protect_first=2, protect_last=1))
    assert found["chances"][:2] == [0, 0] and found["chances"][5] == 0
    forced = stability(values, Cut(remove=3, protect_first=2, protect_last=1))
    assert forced["removed"] == [2, 3, 4] and forced["same_set"] == 1 and forced["settled"]
    lower = stability(draw([6, 5, 4, 3, 2, 1], 10, 0.1, 0, 0), Cut(remove=2, **FREE), higher_is="less important")
    assert lower["removed"] == [0, 1] and lower["settled"]


def test_one_sequence_is_not_enough():
    for measure in (
        lambda: intervals([[1.0]]),
        lambda: stability([[1.0], [2.0]], Cut(remove=1, **FREE)),
        lambda: near_noise([[1.0], [2.0]], [0, 1]),
    ):
        with pytest.raises(RegrowError, match=r"1 calibration sequence.*raise score\.sequences"):
            measure()
