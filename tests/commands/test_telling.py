"""Words of a status."""

from __future__ import annotations

import math
import time

import pytest

from pipeline.commands.telling import Line, ago, perplexity_of, under


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s ago"), (119, "119 s ago"), (120, "2 min ago"), (7300, "2.0 h ago"), (3.5 * 86400, "3.5 days ago")],
)
def test_ages_are_told_in_the_unit_that_suits_them(seconds, words):
    assert ago(time.time() - seconds) == words


def test_a_perplexity_has_an_interval_where_its_rows_tell_one():
    assert perplexity_of({"value": 20.0, "stderr": 1.0, "rows": 64}) == "perplexity 20.00 (95 %: 18.10 to 22.10)"
    assert perplexity_of({"value": 20.0}) == "perplexity 20.00"
    assert perplexity_of({"value": math.inf}) == perplexity_of({"value": None}) == "perplexity not finite"


def test_what_the_clock_changes_is_no_part_of_what_is_said():
    line = under(Line("newest checkpoint step-00000010", ", 3 s ago"))
    assert line.said.strip() == "newest checkpoint step-00000010"
    assert line.text.endswith("step-00000010, 3 s ago")
