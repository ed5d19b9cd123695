"""Rows of the three models: what is compared with the dense model, and what is too little measured for that."""

from __future__ import annotations

import copy

import pytest

from pipeline.reporting.model_rows import (
    latency_words,
    left_out_words,
    measure_rows,
    micro_batch_words,
    perplexity_rows,
    protocol_words,
)


@pytest.fixture
def models(made_up):
    """The made-up results, to be changed."""
    return copy.deepcopy(made_up["results"]["models"])


def row_of(label, models, prune):
    row = next(row for row in measure_rows(models, prune, perplexity_rows(models)) if row["label"] == label)
    return [
        {key: value.replace("\u202f", " ") for key, value in cell.items() if key != "missing"} for cell in row["cells"]
    ]


def test_latencies_are_medians_with_their_range_compared_with_dense(models, made_up):
    assert row_of("Latency", models, made_up["prune"]) == [
        {"text": "3.91 s", "relative": "", "spread": "3.83 s to 4.11 s"},
        {"text": "2.83 s", "relative": "\u221227.6 %", "spread": "2.77 s to 2.97 s"},
        {"text": "2.81 s", "relative": "\u221228.1 %", "spread": "2.75 s to 2.95 s"},
    ]
    assert [cell["relative"] for cell in row_of("Throughput", models, made_up["prune"])] == ["", "+38.2 %", "+39.1 %"]
    words = latency_words(models)
    assert words.startswith("Latency is the median of 5 runs, beside it the fastest and the slowest.")
    assert words.endswith("All models stayed loaded and took turns, one run at a time.")


def test_speeds_of_a_single_run_are_not_compared(models, made_up):
    for entry in models.values():
        entry["generation"] |= {"repeats": 1, "rounds": 1, "latency_range": None}
    for label in ("Latency", "Throughput"):
        for cell in row_of(label, models, made_up["prune"]):
            assert (cell["relative"], cell["spread"]) == ("", ""), f"{label} of one run: {cell}"
    words = latency_words(models)
    assert words.startswith("Latency is that of a single run of each model, too little to compare speeds.")
    assert "median" not in words and "mean" not in words


def test_it_is_said_where_models_were_loaded_in_turn_and_nothing_where_nothing_was_measured(models):
    for entry in models.values():
        entry["generation"] |= {"repeats": 6, "rounds": 3, "loaded": "in turn"}
    assert "did not fit together: each was loaded 3 times, in turn." in latency_words(models)
    for entry in models.values():
        entry["generation"] = {"samples": []}
    assert latency_words(models) == latency_words({}) == ""


def test_other_texts_follow_the_held_out_one_with_protocol_and_form(models, made_up):
    for number, entry in enumerate(models.values()):
        other = {"value": 30.0 + number, "length": 129, "stride": 128, "bos": "every", "tokens": 4096}
        overlapping = {**other, "length": 2048, "stride": 512, "text": {"form": "raw"}}
        texts = {"wikitext2": {**other, "text": {"form": "tokenised"}}, "c4": overlapping}
        entry["perplexity"] = {**texts, **entry["perplexity"]}
    rows = perplexity_rows(models)
    assert [row["set"] for row in rows] == ["held_out", "wikitext2", "c4"]
    words = [protocol_words(row).replace("\u202f", " ") for row in rows]
    assert words == [
        "sha256 cccccccc, length 256, BOS policy: document, 20.5 k tokens",
        "length 129, BOS policy: every, 4.1 k tokens, tokenised text with <unk>",
        "length 2048, stride 512, BOS policy: every, 4.1 k tokens, raw text",
    ]
    assert [cell["text"] for cell in row_of("Perplexity on wikitext2", models, made_up["prune"])] == [
        "30.00",
        "31.00",
        "32.00",
    ]


def test_a_text_that_was_left_out_is_said_with_its_reason():
    assert left_out_words(None) == left_out_words({"models": {}}) == left_out_words({"left_out": {"tasks": {}}}) == ""
    assert left_out_words({"left_out": {"perplexity": {"c4": "no network"}}}) == (
        "Perplexity on c4 was not measured: no network."
    )


def test_the_rows_of_a_forward_are_said_where_they_are_known(models):
    assert micro_batch_words({}) == ""
    assert micro_batch_words(models) == "Each forward had 8 rows of a text; another number rounds otherwise."
    models["dense"]["perplexity"]["held_out"]["micro_batch"] = 2
    models["pruned"]["perplexity"]["held_out"].pop("micro_batch")
    assert "had 2 or 8 rows" in micro_batch_words(models)
