"""What stands beside each number: weights and texts by their hashes, once each, and nothing where it is not known."""

from __future__ import annotations

from pipeline.reporting.identity import calibrated_on, text_lines, weight_lines, weight_words

TEXT = {"path": "texts/news.jsonl", "sha256": "b" * 64}
MODELS = {
    "dense": {
        "sha256": "a" * 64,
        "revision": "main",
        "dtype": "bfloat16",
        "perplexity": {"held_out": {"text": {"sha256": "c" * 64}}, "news": {"text": TEXT}},
    },
    "pruned": {"sha256": "d" * 64, "dtype": "bfloat16", "perplexity": {"news": {"text": TEXT}}},
    "regrown": {},
}


def test_each_model_that_says_so_has_its_weights_and_dtype():
    assert weight_lines(MODELS) == [
        {"of": "dense", "sha256": "a" * 64, "words": "revision main, computing in bfloat16"},
        {"of": "pruned", "sha256": "d" * 64, "words": "computing in bfloat16"},
    ]


def test_of_a_record_that_says_less_less_is_said():
    assert calibrated_on({}) == calibrated_on({"model": {"sha256": "a" * 64}, "calibration": {"length": 9}}) == ""
    assert calibrated_on({"calibration": {"sequences": 1}}) == "1 calibration sequence"
    assert weight_words({"revision": "0123456789", "dtype": "float32"}) == "revision 01234567, float32"
    assert weight_words({}) == ""


def test_each_text_stands_once():
    lines = text_lines(MODELS)
    assert [(line["of"], line["sha256"]) for line in lines] == [("held-out text", "c" * 64), ("news", "b" * 64)]
    assert text_lines({"dense": {"perplexity": {"news": {"text": {}}}}}) == []
