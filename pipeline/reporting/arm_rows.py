"""Tables that set arms beside one another: a column for each arm, and in a row only what was measured alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.reporting import notation
from pipeline.reporting.arms import Arm, Judged, text_words
from pipeline.reporting.identity import weight_words
from pipeline.reporting.intervals import perplexity_interval, ratio_interval
from pipeline.reporting.model_rows import MODELS, protocol_words
from pipeline.reporting.series import OF_TASKS, labels_of
from pipeline.reporting.tasks import points

#: What a cell says where an arm has no such figure.
NOTHING = "\u2013"
#: A label, a note, and a cell for each arm: text, lines of small print, and whether it is missing.
Row = dict[str, Any]
#: Rows under one heading, with a note on what they share.
Group = dict[str, Any]


def cost_rows(arms: Sequence[Arm], hours: str) -> list[Row]:
    """What each arm's regrown model is, and what its training took, in ``hours`` of all processes."""
    small = [[arm.word] if arm.word else [] for arm in arms]
    devices = [[arm.device] if arm.device else [] for arm in arms]
    rows = [
        _row("Blocks", "of the first dense model's", [_blocks(arm) for arm in arms]),
        _row("Parameters", "", [notation.parameters(_of_regrown(arm, "parameters")) for arm in arms]),
        _row("Files of weights", "", [notation.file_size(_of_regrown(arm, "weight_file_bytes")) for arm in arms]),
        _row("Tokens", "seen in training", [notation.tokens(arm.tokens) for arm in arms], small),
        _row("FLOPs", "of training, healing and teachers", [notation.flops(arm.flops) for arm in arms]),
        _row(hours, "of training", [notation.significant(arm.hours, 3) for arm in arms], devices),
    ]
    return [row for row in rows if not all(cell["missing"] for cell in row["cells"])]


def perplexity_groups(arms: Sequence[Arm], judged: Sequence[Judged]) -> list[Group]:
    """A group for each set of rows that models were judged on, with a row for each model of an arm.

    Below a perplexity stand its 95 % interval, its ratio to that of the first arm that has one in the row, with the
    interval of the paired differences, and which weights it is of.
    """
    groups = []
    for one in judged:
        rows = []
        for model in reversed(MODELS):
            entries = {number: entry for (number, of), entry in one.entries.items() if of == model}
            if entries:
                rows.append(_perplexities(arms, model, entries))
        words = protocol_words({**dict.fromkeys(("set", "name", "sha256", "form")), **_stated(one.first)})
        note = ", ".join(part for part in (text_words(one.first), _rows_words(one.first), words) if part)
        groups.append(
            {"label": one.name[:1].upper() + one.name[1:], "note": note, "differs": one.differs, "rows": rows}
        )
    return groups


def _stated(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry.get(key) for key in ("length", "stride", "bos", "tokens")}


def _rows_words(entry: Mapping[str, Any]) -> str:
    return f"{entry['rows']:,} rows" if entry.get("rows") is not None else ""


def _perplexities(arms: Sequence[Arm], model: str, entries: Mapping[int, Mapping[str, Any]]) -> Row:
    """The row of one model's perplexities."""
    first = min(entries)
    known = [entries.get(number) for number in range(len(arms))]
    texts = [NOTHING if entry is None else notation.significant(entry.get("value")) for entry in known]
    small = [_below(arms, model, entries, number, first) if known[number] else [] for number in range(len(arms))]
    return _row(model.capitalize(), _step_words(arms, model, entries), texts, small)


def _below(
    arms: Sequence[Arm], model: str, entries: Mapping[int, Mapping[str, Any]], number: int, first: int
) -> list[str]:
    """The lines below an arm's perplexity."""
    entry, weights = entries[number], arms[number].models[model]
    lines = [notation.between(perplexity_interval(entry))]
    if number != first:
        same = weights.get("sha256") is not None and weights["sha256"] == arms[first].models[model].get("sha256")
        lines.append("same weights" if same else ratio_words(entry, entries[first]))
    lines.append(weight_words(weights))
    return [line for line in lines if line]


def ratio_words(entry: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """A perplexity over another's in words: `x 1.20 (1.15 to 1.25)`, with the 95 % interval of the differences on the
    same rows; without brackets where losses of rows are not there."""
    ratio, interval = notation.ratio(entry.get("value"), other.get("value")), ratio_interval(entry, other)
    return f"{ratio} ({notation.between(interval)})" if ratio and interval else ratio


def _step_words(arms: Sequence[Arm], model: str, entries: Mapping[int, Any]) -> str:
    """Of which steps exports were judged by themselves, where they were."""
    steps = {step for number in entries if (step := arms[number].models[model].get("step")) is not None}
    return f"export of step {' or '.join(f'{step:,}' for step in sorted(steps))}" if steps else ""


def task_rows(arms: Sequence[Arm]) -> list[Row]:
    """What the regrown models answer right of a hundred, with one standard error, a row for each task and protocol."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    named: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, arm in enumerate(arms):
        for task, entry in (arm.models.get("regrown", {}).get("tasks") or {}).items():
            fixed = {field: entry.get(field) for field in OF_TASKS}
            key = repr((task, fixed))
            named[key] = task, fixed
            found.setdefault(key, {})[number] = entry
    labels = labels_of(list(named.values()), OF_TASKS)
    return [
        _row(label, _task_words(next(iter(entries.values()))), *_answers(arms, entries))
        for label, entries in zip(labels, found.values(), strict=True)
    ]


def _task_words(entry: Mapping[str, Any]) -> str:
    shots = f", {entry['shots']} shots" if entry.get("shots") else ""
    hashed = f", sha256 {entry['sha256'][:8]}" if entry.get("sha256") else ""
    return f"{entry['metric']}, {entry['items']:,} items{shots}{hashed}"


def _answers(arms: Sequence[Arm], entries: Mapping[int, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A task's values and what stands below them."""
    first = entries[min(entries)]
    texts, small = [], []
    for number, arm in enumerate(arms):
        entry = entries.get(number)
        if entry is None:
            texts.append(NOTHING)
            small.append([])
            continue
        # A perplexity, say, is no share of a hundred.
        share, error = entry.get("share", True), entry.get("stderr")
        texts.append(f"{100 * entry['value']:.1f}" if share else notation.significant(entry["value"]))
        spread = "" if error is None else f"\u00b1 {100 * error:.1f}" if share else f"\u00b1 {error:.2g}"
        other = points(entry["value"] - first["value"]) if share and number != min(entries) else ""
        small.append([line for line in (spread, other, weight_words(arm.models["regrown"])) if line])
    return texts, small


def speed_rows(arms: Sequence[Arm]) -> list[Row]:
    """Latency and throughput of the regrown models, in a row where machine, prompt and dtype were the same."""
    found: dict[tuple, dict[int, Mapping[str, Any]]] = {}
    for number, arm in enumerate(arms):
        speed = arm.models.get("regrown", {}).get("generation") or {}
        if speed.get("latency_seconds") is not None:
            fields = ("prompt_tokens", "new_tokens", "batch", "device", "threads", "dtype")
            machine = ((arm.records.cost or {}).get("hardware") or {}).get("processor")
            found.setdefault((*(speed.get(field) for field in fields), machine), {})[number] = speed
    rows = []
    for (prompt, new, batch, device, threads, dtype, machine), speeds in found.items():
        place = machine if device == "cpu" else device
        parts = [
            f"{prompt} prompt + {new} new tokens, batch {batch}",
            place,
            f"{threads} thread{'s' * (threads > 1)}" if threads else "",
        ]
        note = ", ".join(part for part in (*parts, dtype) if part)
        if any(speed.get("repeats") == 1 for speed in speeds.values()):
            note += "; timed once, too little to compare speeds"
        known = [speeds.get(number, {}) for number in range(len(arms))]
        ranges = [one.get("latency_range") or () for one in known]
        between = [[" to ".join(map(notation.duration, ends))] if ends else [] for ends in ranges]
        latencies = [notation.duration(one.get("latency_seconds")) for one in known]
        rates = [notation.significant(one.get("tokens_per_second"), 3) for one in known]
        rows += [_row("Latency", note, latencies, between), _row("Tokens per second", note, rates)]
    return rows


def config_rows(arms: Sequence[Arm]) -> list[Row]:
    """The keys whose values differ, but for the run's name; of what holds keys of its own, those."""
    told = [{key: words for name, value in arm.values.items() for key, words in _leaves(name, value)} for arm in arms]
    rows = []
    for key in dict.fromkeys(key for one in told for key in one if key != "run.name"):
        values = [one.get(key, NOTHING) for one in told]
        if len(set(values)) > 1:
            rows.append(_row(key, "", values))
    return rows


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Keys and their values in words: `data.sources[0].path`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(f"{name}[{number}]", inner)
    else:
        yield name, _value_words(value)


def _value_words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _of_regrown(arm: Arm, key: str) -> Any:
    """What was measured of the regrown model or, where it was not, recorded of the pruned one."""
    value = arm.models.get("regrown", {}).get(key)
    if value is None and key == "parameters" and arm.values["train.init"] in ("pruned", "random"):
        return (arm.records.prune.get("parameters") or {}).get("pruned")
    return value


def _blocks(arm: Arm) -> str:
    """Blocks of the regrown model, of those of the first dense one."""
    whole = arm.records.prune_in_all
    dense, own = len(whole["removed"]) + len(whole["kept"]), _of_regrown(arm, "blocks")
    if own is None:
        begun = {"pruned": len(whole["kept"]), "random": len(whole["kept"]), "dense": dense}
        own = begun.get(arm.values["train.init"])
    return notation.MISSING if own is None else f"{own} of {dense}"


def _row(label: str, note: str, texts: Sequence[str], small: Sequence[Sequence[str]] | None = None) -> Row:
    below = small or [[]] * len(texts)
    cells = [
        {"text": NOTHING if text == notation.MISSING else text, "small": lines, "missing": text in _MISSING}
        for text, lines in zip(texts, below, strict=True)
    ]
    return {"label": label, "note": note, "cells": cells}


_MISSING = (NOTHING, notation.MISSING)
