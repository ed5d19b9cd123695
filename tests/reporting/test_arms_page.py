"""The page of a comparison: whole, of one file, and it says what does not compare."""

from __future__ import annotations

import re

import pytest

from pipeline.reporting.arms_page import apart_words, hours_word, render_arms
from tests.reporting.arms import arm, asked_on
from tests.reporting.reading import Page


@pytest.fixture(scope="module")
def drawn():
    """The page of three arms, one of them judged on other rows in training; parsed, with its words."""
    other = {"held_out": asked_on(16), "curve": []}
    arms = [arm("first"), arm("second", worse=1.1), arm("third<b>", inputs=other, device="2 x H200")]
    html = render_arms(arms)
    page = Page(html)
    page.words = " ".join(page.text.split())
    return html, page


def test_the_page_is_whole_and_refers_to_nothing_outside(drawn):
    html, page = drawn
    assert html.lstrip().startswith("<!DOCTYPE html>") and page.faults == []
    assert not re.search(r'(?:src|href)="(?!#)', html) and "<script" not in html
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers)), "drawings share an id"


def test_the_page_says_what_each_run_came_to_and_how_they_compare(drawn):
    _, page = drawn
    assert "3 runs compared" in page.words
    assert "first: 9 of 30 blocks removed, 23.7 % fewer parameters. Held-out perplexity went from" in page.words
    assert "24.31 22.7 to 26.0 \u00d7 1.10 (1.08 to 1.12) secondxx, bfloat16" in page.words
    assert "third<b>: 9 of" in page.words, "a name was taken for markup"
    assert "Hours of all processes of training" in page.words, "one of them had no GPU"
    assert "Asked of one run alone, and not drawn: held-out text, 16 rows (third<b>)." in page.words
    assert "Nothing but the name." in page.words
    assert f"regrown {'first':x<64} computing in bfloat16" in page.words


def test_what_was_judged_otherwise_is_said_in_a_sentence():
    groups = [{"label": "A", "differs": ""}, {"label": "B", "differs": "8 rows"}, {"label": "B", "differs": "16 rows"}]
    (words,) = apart_words(groups)
    assert words.startswith("B was judged in 2 ways (8 rows; 16 rows), whose numbers do not compare")


def test_hours_are_gpu_hours_where_all_had_gpus():
    assert hours_word([arm("a", device="1 x H100"), arm("b", device=None)]) == "GPU-hours"
    assert hours_word([arm("a"), arm("b", device="1 x H100")]) == "Hours of all processes"
