"""Rows of the page and the card that set the dense, the pruned and the regrown model side by side.

Plain dicts of numbers and words, in the order in which they are shown; what was not measured is None or said in words.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.reporting import notation
from pipeline.reporting.intervals import perplexity_interval, ratio_interval
from pipeline.reporting.names import text_name

MODELS = ("dense", "pruned", "regrown")
#: Forms of a text, in words.
FORMS = {"raw": "raw text", "tokenised": "tokenised text with <unk>"}


def perplexity_rows(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per way of measuring, the held-out set first.

    Perplexities compare only on the same text, length, stride and BOS policy: models measured otherwise get a row of
    their own. A row holds `set`, `length`, `stride`, `bos`, `tokens`, `form` (of the text: raw or tokenised), its
    `sha256` and `name`, `values`, which maps a model to its perplexity, and the 95 % `intervals` of these and, as
    `compared`, of their ratios to dense on the same rows, where they are known.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    dense = models.get("dense", {}).get("perplexity") or {}
    for model in MODELS:
        for name, entry in (models.get(model, {}).get("perplexity") or {}).items():
            protocol = {"set": name, **{key: entry.get(key) for key in ("length", "stride", "bos", "tokens")}}
            text = entry.get("text") or {}
            protocol |= {"form": text.get("form"), "sha256": text.get("sha256")}
            found = {"name": text_name(text), "values": {}, "intervals": {}, "compared": {}}
            row = rows.setdefault(tuple(protocol.values()), {**protocol, **found})
            row["values"][model] = entry.get("value")
            row["intervals"][model] = perplexity_interval(entry)
            row["compared"][model] = ratio_interval(entry, dense.get(name) or {}) if model != "dense" else None
    return sorted(rows.values(), key=lambda row: (row["set"] != "held_out", -len(row["values"])))


def protocol_words(row: Mapping[str, Any]) -> str:
    """How a perplexity was measured: `wiki, sha256 46c4be77, length 256, BOS policy: document, 20 k tokens`; the text's
    name where it is not the row's, a stride where rows overlap."""
    parts = [row["name"]] if row["name"] not in (None, row["set"]) else []
    parts += [f"sha256 {row['sha256'][:8]}"] if row["sha256"] is not None else []
    parts += [f"length {row['length']}"] if row["length"] is not None else []
    overlap = row["stride"] is not None and row["stride"] < row["length"] - (row["bos"] == "every")
    parts += [f"stride {row['stride']}"] if overlap else []
    parts += [f"BOS policy: {row['bos']}"] if row["bos"] is not None else []
    parts += [f"{notation.tokens(row['tokens'])} tokens"] if row["tokens"] is not None else []
    parts += [FORMS.get(row["form"], row["form"])] if row["form"] is not None else []
    return ", ".join(parts)


def micro_batch_words(models: Mapping[str, Any]) -> str:
    """How many rows of a text stood in one forward where perplexities were computed, in a sentence; empty where that is
    not recorded."""
    found = [entry for model in MODELS for entry in (models.get(model, {}).get("perplexity") or {}).values()]
    rows = sorted({entry["micro_batch"] for entry in found if entry.get("micro_batch") is not None})
    if not rows:
        return ""
    return f"Each forward had {' or '.join(map(str, rows))} rows of a text; another number rounds otherwise."


def interval_words(perplexities: Sequence[Mapping[str, Any]]) -> str:
    """What the brackets beside perplexities are, in a sentence; empty where there are none."""
    if not any(one for row in perplexities for one in row["intervals"].values()):
        return ""
    ratios = any(one for row in perplexities for one in row["compared"].values())
    of_ratios = ", in brackets of the ratio, on the same rows" if ratios else ""
    return f"Ranges below perplexities are 95{notation.SPACE}% intervals over the choice of rows{of_ratios}."


def left_out_words(results: Mapping[str, Any] | None) -> str:
    """Which texts no perplexity was measured on, and why, a sentence for each; empty where none was left out. What a
    library said stands in results.json alone: it may name folders of this machine."""
    left_out = ((results or {}).get("left_out") or {}).get("perplexity") or {}
    said = {name: reason.partition(" (")[0] for name, reason in left_out.items()}
    return " ".join(f"Perplexity on {name} was not measured: {reason}." for name, reason in said.items())


def measure_rows(
    models: Mapping[str, Any], prune: Mapping[str, Any], perplexities: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of the table that sets the three models side by side.

    A row holds `label`, `note`, and `cells`: for each of the three models the number in words, for all but dense
    how it compares with dense, and the 95 % interval of a perplexity or the lowest and the highest of several speeds.
    Speeds of a single run are not compared. What was measured of no model has no row, but for held-out perplexity.
    """
    rows = []

    def add(
        label: str,
        note: str,
        values: Mapping[str, Any],
        write: Callable[[float | None], str],
        compare: Callable[[float | None, float | None], str],
        spreads: Mapping[str, str] | None = None,
        ratios: Mapping[str, str] | None = None,
    ) -> None:
        reference = values.get("dense")
        cells = []
        for model in MODELS:
            value, spread, ratio = values.get(model), (spreads or {}).get(model, ""), (ratios or {}).get(model, "")
            relative = "" if model == "dense" else compare(value, reference)
            relative += f" ({ratio})" if relative and ratio else ""
            missing = value is None
            cells.append({"text": write(value), "relative": relative, "spread": spread, "missing": missing})
        rows.append({"label": label, "note": note, "cells": cells})

    known = {model: models.get(model, {}) for model in MODELS}
    total, sizes = len(prune["removed"]) + len(prune["kept"]), prune.get("parameters") or {}
    depth = {"dense": total, "pruned": len(prune["kept"])} | _pick(known, "blocks")
    size = {model: sizes[model] for model in sizes if model in MODELS} | _pick(known, "parameters")
    add("Blocks", "", depth, lambda v: notation.MISSING if v is None else str(v), notation.change)
    add("Parameters", "", size, notation.parameters, notation.change)
    files = _pick(known, "weight_file_bytes")
    if files:
        add("Files of weights", "", files, notation.file_size, notation.change)
    if not perplexities:
        add("Held-out perplexity", "", {}, notation.significant, notation.ratio)
    for row in perplexities:
        label = "Held-out perplexity" if row["set"] == "held_out" else f"Perplexity on {row['set']}"
        spans, ratios = (
            {model: notation.between(one) for model, one in row[kind].items()} for kind in ("intervals", "compared")
        )
        add(label, protocol_words(row), row["values"], notation.significant, notation.ratio, spans, ratios)
    for (prompt, new, batch), speeds in _speeds(known).items():
        note = f"{prompt} prompt + {new} new tokens, batch {batch}"
        compared = notation.change if all(s.get("latency_range") for s in speeds.values()) else lambda *_: ""
        ranges = {
            model: " to ".join(map(notation.duration, between))
            for model, between in _pick(speeds, "latency_range").items()
        }
        add("Latency", note, _pick(speeds, "latency_seconds"), notation.duration, compared, ranges)
        add(
            "Throughput",
            "generated tokens per second",
            _pick(speeds, "tokens_per_second"),
            lambda v: notation.significant(v, 3),
            compared,
        )
        memory = _pick(speeds, "peak_memory_bytes")
        if memory:
            add("Peak memory", "while generating", memory, notation.memory, notation.change)
    return rows


def _speeds(known: Mapping[str, Any]) -> dict[tuple, dict[str, Any]]:
    """(prompt tokens, new tokens, batch) -> model -> what was measured of its generation."""
    settings: dict[tuple, dict[str, Any]] = {}
    for model in MODELS:
        speed = known[model].get("generation") or {}
        if speed:
            key = (speed.get("prompt_tokens"), speed.get("new_tokens"), speed.get("batch"))
            settings.setdefault(key, {})[model] = speed
    return settings


def latency_words(models: Mapping[str, Any]) -> str:
    """How the latencies were measured, in a sentence or two; empty where none was."""
    speeds = [speed for model in MODELS if (speed := models.get(model, {}).get("generation") or {}).get("repeats")]
    if not speeds:
        return ""
    repeats, rounds = speeds[0]["repeats"], speeds[0].get("rounds")
    taken = {
        "together": " All models stayed loaded and took turns, one run at a time.",
        "in turn": f" The models did not fit together: each was loaded {rounds} times, in turn.",
    }.get(speeds[0].get("loaded"), "")
    if repeats == 1:
        return f"Latency is that of a single run of each model, too little to compare speeds.{taken}"
    return f"Latency is the median of {repeats} runs, beside it the fastest and the slowest.{taken}"


def sample_rows(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Prompts in the order first met, each with the text that each model wrote (absent where it wrote none)."""
    rows: dict[str, dict[str, str]] = {}
    for model in MODELS:
        for sample in (models.get(model, {}).get("generation") or {}).get("samples") or ():
            rows.setdefault(sample["prompt"], {})[model] = sample["text"]
    return [{"prompt": prompt, "texts": texts} for prompt, texts in rows.items()]


def stage_rows(cost: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stages with their wall time in words and their share of the longest, in per cent."""
    seconds = {stage: entry.get("seconds") for stage, entry in (cost.get("stages") or {}).items()}
    longest = max((s for s in seconds.values() if s is not None), default=0) or 1
    return [
        {"stage": stage, "time": notation.duration(s), "share": round(100 * (s or 0) / longest, 1)}
        for stage, s in seconds.items()
    ]


def _pick(entries: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    return {model: entry[key] for model, entry in entries.items() if entry.get(key) is not None}


def recovered(references: Mapping[str, float | None]) -> float | None:
    """The share of the loss that pruning added and training took away again, as a fraction.

    Loss is the logarithm of perplexity: (ln pruned - ln regrown) / (ln pruned - ln dense). None where one of the
    three is missing or pruning added nothing.
    """
    values = [references.get(model) for model in MODELS]
    if any(value is None or not math.isfinite(value) or value <= 0 for value in values):
        return None
    dense, pruned, regrown = (math.log(value) for value in values)
    return (pruned - regrown) / (pruned - dense) if pruned > dense else None
