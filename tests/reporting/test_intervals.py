"""Intervals hold what they say: against known quantiles, and against draws of rows."""

import math
import random
from statistics import fmean

import pytest

from pipeline.reporting.intervals import paired_ratio, perplexity_interval, ratio_interval, student

#: 97.5 % quantiles of Student's distribution, from a table.
TABLE = {4: 2.776, 7: 2.365, 15: 2.131, 31: 2.040, 100: 1.984}


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_are_those_of_the_table(degrees):
    assert student(degrees) == pytest.approx(TABLE[degrees], rel=0.01)


def entry(value, losses=None, rows=16, **more):
    about = {"length": 256, "stride": 256, "bos": "document", "tokens": 255 * rows, "text": {"sha256": "c" * 64}}
    return {"value": value, "stderr": 0.05 * value, "rows": rows, "row_losses": losses, **about, **more}


def test_an_interval_is_even_in_the_loss():
    low, high = perplexity_interval(entry(20.0))
    assert math.log(20 / low) == pytest.approx(math.log(high / 20)) == pytest.approx(0.05 * student(15))


@pytest.mark.parametrize("change", [{"stderr": None}, {"rows": 2}, {"rows": None}, {"value": math.inf}])
def test_what_is_not_known_has_no_interval(change):
    assert perplexity_interval({**entry(20.0), **change}) is None


def test_the_interval_of_a_ratio_covers_it_in_95_of_100_draws():
    noise, covered, draws = random.Random(0), 0, 400
    for _ in range(draws):
        dense = [noise.gauss(3.0, 0.5) for _ in range(12)]
        low, high = paired_ratio([loss + noise.gauss(0.4, 0.1) for loss in dense], dense)
        covered += low <= math.exp(0.4) <= high
    assert 0.92 < covered / draws < 0.98


def test_rows_in_common_make_a_ratio_narrow_and_other_rows_none():
    noise = random.Random(1)
    dense = [noise.gauss(3.0, 0.5) for _ in range(16)]
    pruned = [loss + noise.gauss(0.4, 0.02) for loss in dense]
    one, other = entry(math.exp(fmean(pruned)), pruned), entry(math.exp(fmean(dense)), dense)
    low, high = ratio_interval(one, other)
    alone = perplexity_interval(one)
    assert low < one["value"] / other["value"] < high and high / low < alone[1] / alone[0]
    assert ratio_interval(one, {**other, "bos": "every"}) is None
    assert ratio_interval(one, {**other, "text": {"sha256": "d" * 64}}) is None
    assert ratio_interval(one, {**other, "row_losses": None}) is None
