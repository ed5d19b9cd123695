"""The last run of a chain tells all of it: in the numbers of the first dense model, with the tokens of every run."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.reporting import Records, render_card
from pipeline.reporting.chain import chain_rows, flops_in_all, in_all, tokens_in_all
from tests.reporting.reading import render

#: Link 1 removed 2 and 6 of 8 blocks; link 2 the blocks 2 and 4 of the 6 that were left: 3 and 5 of the first model.
PRUNE = {
    "removed": [4, 2],
    "kept": [0, 1, 3, 5],
    "protected": [0, 1, 5],
    "parameters": {"dense": 600, "pruned": 400},
    "first": {"dense_blocks": 8, "kept": [0, 1, 3, 4, 5, 7], "removed": [3, 5]},
}
BEFORE = {"run": "try-1", "removed": [2, 6], "blocks": 6, "tokens": 2048, "held_out_perplexity": 41.5}
TRAIN = {"tokens": 1000, "steps": 2, "held_out_perplexity": 60.25, "before": [BEFORE]}


def test_blocks_are_counted_in_the_first_model():
    whole = in_all(PRUNE, {"dense": {"parameters": 800}})
    assert whole["removed"] == [2, 3, 5, 6] and whole["kept"] == [0, 1, 4, 7]
    assert whole["protected"] == [0, 1, 7], "protected are the ends of the first model"
    assert whole["parameters"] == {"dense": 800, "pruned": 400}


def test_a_run_alone_is_told_as_it_is():
    alone = {**PRUNE, "first": None}
    assert in_all(alone, {}) == alone
    assert chain_rows(alone, {"tokens": 1000, "before": []}) == [] == chain_rows(alone, {})
    assert tokens_in_all({"tokens": 1000}) == 1000 and tokens_in_all({}) is None


def behind(flops: float | None) -> dict[str, Any]:
    """A run of 5e12 FLOPs behind those of TRAIN, of which the first took so many and the others none."""
    first, *others = TRAIN["before"]
    return TRAIN | {"flops": 5e12, "before": [first | {"flops": flops}, *(one | {"flops": 0.0} for one in others)]}


def test_flops_are_those_of_all_runs_or_not_known():
    assert flops_in_all({"flops": 5e12}) == 5e12 and flops_in_all({}) is None
    assert flops_in_all(behind(2e13)) == 2.5e13
    assert flops_in_all(behind(None)) is None, "a record that knows none"


def test_each_run_has_a_row():
    rows = chain_rows(PRUNE, TRAIN)
    assert [(row["run"], row["removed"], row["blocks"]) for row in rows] == [
        ("try-1", "2, 6", "6"),
        ("this run", "3, 5", "4"),
    ]
    assert [row["perplexity"] for row in rows] == ["41.50", "60.25"]
    assert [row["spread"] for row in rows] == ["", ""], "an older record knows no error"
    known = TRAIN | {"held_out_stderr": 0.6025, "held_out_rows": 1000}
    assert chain_rows(PRUNE, known)[-1]["spread"] == "59.1 to 61.4", "60.25 x exp(+- 1.96 x 1 %)"
    assert tokens_in_all(TRAIN) == 3048


@pytest.fixture
def chained(worded):
    prune = worded["prune"] | PRUNE | {"criterion": "ppl", "stability": None, "linear": None}
    return worded | {"prune": prune, "cost": worded["cost"] | {"train": TRAIN}}


def test_the_card_tells_the_chain(chained):
    keys = ("name", "prune", "results", "cost", "provenance")
    text = render_card(Records(**{key: chained[key] for key in keys})).replace("\u202f", " ")
    assert (
        "with 4 of its 8 transformer blocks removed, in parts, with training on 3.05 k tokens in all between and after"
        in text
    )
    assert "counted from 0 in the base model: 2, 3, 5, 6\n" in text
    assert "| try-1 | 2, 6 | 6 | 2.05 k | 41.50 |" in text and "| this run | 3, 5 | 4 | 1 k | 60.25 |" in text
    assert "Of the loss that pruning added" not in text, "pruned is the last part's model"
    assert "3.05 k tokens are a demonstration" in text


def test_the_page_tells_the_chain(chained, tmp_path):
    html, page = render(chained, tmp_path)
    assert "How the blocks went" in page.words and "4 of 8 blocks removed" in page.words
    assert "are gone in all: 2, 3, 5, 6." in page.words
    assert "Removed: 2, 4, counted from 0 in the model that this run began with." in page.words
    assert 'aria-label="8 blocks; removed: 2, 3, 5, 6"' in html


@pytest.mark.parametrize("before", [2e13, None])
def test_flops_stand_beside_the_tokens_that_they_are_of(chained, tmp_path, before):
    chained["cost"]["train"] = behind(before)
    keys = ("name", "prune", "results", "cost", "provenance")
    text = render_card(Records(**{key: chained[key] for key in keys})).replace("\u202f", " ")
    _, page = render(chained, tmp_path)
    if before is None:
        assert "- Training compute: 5.0e12 FLOPs\n" in text and "compute and time are of the last run" in text
        assert "3.05 k tokens in all. What follows is of this run alone." in page.words
    else:
        assert "- Training compute: 2.5e13 FLOPs in the whole chain\n" in text and "chain; time is of the last" in text
        assert "3.05 k tokens in all, trained on with 2.5e13 FLOPs. What follows" in page.words
    assert "Training of the last run" in page.words


def test_a_run_alone_has_no_chain_on_its_page(worded, tmp_path):
    _, page = render(worded, tmp_path)
    assert "of the last run" not in page.words
    assert "How the blocks went" not in page.words and "the dense model. Protected" in page.words
