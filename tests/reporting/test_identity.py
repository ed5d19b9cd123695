"""What stands beside each number: weights and texts by their hashes, once each, and nothing where it is not known."""

from __future__ import annotations

from pipeline.reporting.identity import text_lines, weight_lines

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


def test_each_text_stands_once():
    lines = text_lines(MODELS)
    assert [(line["of"], line["sha256"]) for line in lines] == [("held-out text", "c" * 64), ("news", "b" * 64)]
    assert text_lines({"dense": {"perplexity": {"news": {"text": {}}}}}) == []
