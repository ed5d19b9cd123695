"""What stands beside each number: which weights, computing in what, on which text.

Beside a number stand the first digits of a hash, in lines of page and card all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.reporting.model_rows import MODELS
from pipeline.reporting.names import text_name


def weight_words(entry: Mapping[str, Any]) -> str:
    """Which weights, by the first digits of their hash or their revision, and in what they computed: `f7b8bfce,
    bfloat16`."""
    hashed, revision = entry.get("sha256"), entry.get("revision")
    named = hashed[:8] if hashed else f"revision {revision[:8]}" if revision else ""
    return ", ".join(part for part in (named, entry.get("dtype")) if part)


def rows_words(record: Mapping[str, Any], many: str, text: str) -> str:
    """Which ``many`` (rows, sequences) of a text a record counts: `32 held-out rows of 256 tokens (BOS policy: every,
    sha256 46c4be77)`, as far as it says so; empty where it does not count them."""
    count, length, hashed = record.get(many), record.get("length"), record.get("sha256")
    if count is None:
        return ""
    known = [f"BOS policy: {record['bos']}"] if record.get("bos") else []
    known += [f"sha256 {hashed[:8]}"] if hashed else []
    words = f"{count} {text} {many.removesuffix('s') if count == 1 else many}"
    words += f" of {length} tokens" if length is not None else ""
    return f"{words} ({', '.join(known)})" if known else words


def calibrated_on(scores: Mapping[str, Any]) -> str:
    """What the scores were measured on and with: `10 calibration sequences of 128 tokens (BOS policy: document, sha256
    46c4be77), drawn with seed 1234, by weights 79b5e8b6, bfloat16`, as far as it was recorded."""
    record = scores.get("calibration") or {}
    weights = weight_words({**(scores.get("model") or {}), "dtype": record.get("dtype")})
    seed = f"drawn with seed {record['seed']}" if record.get("seed") is not None else ""
    by = f"by weights {weights}" if weights else ""
    words = rows_words(record, "sequences", "calibration")
    return ", ".join(part for part in (words, seed, by) if part) if words else ""


def weight_lines(models: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of each model that says so, ``of`` (its name), ``sha256`` of its weights and ``words``: revision, dtype."""
    lines = []
    for model in MODELS:
        entry = models.get(model, {})
        if entry.get("sha256") is None:
            continue
        revision = f"revision {entry['revision']}, " if entry.get("revision") else ""
        lines.append({"of": model, "sha256": entry["sha256"], "words": f"{revision}computing in {entry['dtype']}"})
    return lines


def text_lines(models: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of each text that a perplexity was measured on, ``of`` (its name), ``sha256`` and ``words``: where it is from."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for model in MODELS:
        for name, entry in (models.get(model, {}).get("perplexity") or {}).items():
            text = entry.get("text") or {}
            if text.get("sha256") is not None:
                of, called = name.replace("held_out", "held-out text"), text_name(text)
                words = "" if called in (None, name) else f"{called}"
                words += f", revision {text['revision']}" if text.get("revision") else ""
                found.setdefault((name, text["sha256"]), {"of": of, "sha256": text["sha256"], "words": words})
    return list(found.values())
