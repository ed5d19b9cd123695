"""What stands beside each number: which weights, computing in what, on which text; in lines for page and card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.reporting.model_rows import MODELS
from pipeline.reporting.names import text_name


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
