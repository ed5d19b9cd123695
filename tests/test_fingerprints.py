"""What differs between two fingerprints is said by name, and in few lines."""

from __future__ import annotations

import json

from pipeline.fingerprints import compare_fingerprints


def test_differences_are_named_by_key_input_and_upstream():
    old = {
        "config": {"score.length": 128, "score.bos": "none", "gone": 1},
        "inputs": {"model/config.json": "a"},
        "upstream": {"data": "x"},
        "format": 1,
    }
    assert compare_fingerprints(old, json.loads(json.dumps(old))) == []
    new = {
        "config": {"score.length": 64, "score.bos": "none"},
        "inputs": {"model/config.json": "b", "extra": "c"},
        "upstream": {"data": "y"},
        "format": 2,
    }
    assert compare_fingerprints(old, new) == [
        "gone: was 1, is null",
        "score.length: was 128, is 64",
        "input extra changed",
        "input model/config.json changed",
        "output of an earlier stage, data changed",
        "format of the stage: was 1, is 2: another version of regrow wrote it, and this one cannot read it",
    ]


def test_a_corpus_of_many_files_is_told_of_in_few_lines():
    before = {f"/data/slim/train/chunk{n % 10}/{n}.jsonl.zst": f"hash {n}" for n in range(59_166)}
    after = {name.replace("/data/slim", "/mnt/corpora/slim"): value for name, value in before.items()}
    (moved,) = compare_fingerprints({"inputs": before}, {"inputs": after})
    for part in ("59,166 inputs stand elsewhere", "/data/slim/train", "/mnt/corpora/slim/train", "a link"):
        assert part in moved, moved
    one = [{"inputs": {name: "a", "/kept": "b"}} for name in ("/old/corpus.jsonl", "/new/corpus.jsonl")]
    (moved,) = compare_fingerprints(*one)
    assert "input /old/corpus.jsonl stands elsewhere: its content is /new/corpus.jsonl now" in moved
    # Moved and changed is not moved.
    changed = compare_fingerprints({"inputs": before}, {"inputs": dict.fromkeys(after, "other")})
    assert len(changed) == 6 and changed[-1] == f"and {2 * 59_166 - 5:,} more inputs", changed
