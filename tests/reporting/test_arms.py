"""What was measured alike stands together, whichever run measured it, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.reporting.arms import judged_rows
from tests.reporting.arms import arm, line
from tests.reporting.made_up import made_up_models


def with_entry(name: str, **changes):
    """An arm whose models were judged on held-out text otherwise."""
    models = made_up_models()
    for entry in models.values():
        entry["perplexity"]["held_out"] |= changes
    return arm(name, inputs={"results": {"models": models}})


def test_what_was_judged_alike_is_one_set_of_rows():
    (one,) = judged_rows([arm("a"), arm("b"), with_entry("c", micro_batch=1)])
    assert (one.name, one.label, one.differs) == ("held-out text", "held-out text", "")
    assert {number for number, _ in one.entries} == {0, 1, 2} and len(one.entries) == 9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": {"sha256": "d" * 64}}, ["text cccccc", "text dddddd"]),
        ({"length": 128}, ["length 256", "length 128"]),
        ({"rows": 40}, ["80 rows", "40 rows"]),
        ({"bos": "every"}, ["BOS document", "BOS every"]),
        ({"stride": 128}, ["stride not named", "stride 128"]),
        ({"text": {}}, ["text cccccc", "text of b alone, without a hash"]),
    ],
)
def test_other_rows_are_another_set_that_says_what_differs(changes, words):
    found = judged_rows([arm("a"), with_entry("b", **changes)])
    assert [one.differs for one in found] == words
    assert [{number for number, _ in one.entries} for one in found] == [{0}, {1}]


def test_another_tokenizer_makes_other_rows_of_the_same_text():
    found = judged_rows([arm("a"), arm("b", encoding="f")])
    assert [one.differs for one in found] == ["tokenizer e", "tokenizer f"]


def test_what_more_arms_share_comes_first_and_held_out_text_before_others():
    other = {"wiki": made_up_models()["dense"]["perplexity"]["held_out"] | {"text": {"sha256": "f" * 64}}}
    models = made_up_models()
    for entry in models.values():
        entry["perplexity"] |= other
    wide = arm("wide", inputs={"results": {"models": models}})
    found = judged_rows([with_entry("alone", length=128), wide, replace(wide, name="too")])
    assert [one.label for one in found] == ["held-out text, length 256", "held-out text, length 128", "wiki"]


def test_an_export_that_was_judged_by_itself_stands_for_a_model_that_was_not_evaluated():
    lines = [line(30, "s" * 64), line(60, "t" * 64), line(60, "t" * 64, name="news"), line(60, "u" * 64, name="old")]
    begun = arm("begun", inputs={"curve": lines, "cost": {}})
    bare = replace(begun, records=replace(begun.records, results=None))
    regrown = bare.models["regrown"]
    assert (regrown["step"], regrown["sha256"], regrown["dtype"]) == (60, "t" * 64, "bfloat16")
    assert list(regrown["perplexity"]) == ["news", "held_out"], "other weights of the step were counted"
    # An evaluated model takes from the lines only what is of its own weights, and what it was asked itself counts.
    assert list(begun.models["regrown"]["perplexity"]) == ["held_out"]
    own = arm("own", inputs={"curve": [line(60, f"{'own':x<64}"), line(60, f"{'own':x<64}", name="news")]})
    assert own.models["regrown"]["perplexity"]["held_out"]["rows"] == 80
    assert "news" in own.models["regrown"]["perplexity"] and "step" not in own.models["regrown"]
    assert "news" not in own.records.models["regrown"]["perplexity"], "the record itself was changed"


def test_tokens_are_those_of_a_chain_and_of_a_training_that_goes_on():
    cost = {"train": {"tokens": 1000, "before": [{"tokens": 500}, {"tokens": 200}]}}
    assert (arm("a", inputs={"cost": cost}).tokens, arm("a", inputs={"cost": cost}).tokens_before) == (1700, 700)
    on = arm("a", steps=100, inputs={"cost": {}})
    assert (on.tokens, on.word, arm("a").word) == (60 * 2048, "step 60 of 100", "")
