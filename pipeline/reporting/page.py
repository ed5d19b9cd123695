"""The report of one run as a single HTML file that opens anywhere: no script, no font, no address outside it.

This module turns the run's records into what the template shows, in words and rounded numbers; the template
`page.html.j2` only lays it out. Whatever was not measured is named as such and never ends the report.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.reporting import figures, notation

MODELS = ("dense", "pruned", "regrown")
PRUNE_KEYS = ("protected", "criterion", "base_model", "parameters", "self_test")
PROVENANCE_KEYS = ("model", "base_model", "model_note", "data", "data_note", "license", "language")


def render_page(
    *,
    name: str,
    prune: Mapping[str, Any],
    out: Path,
    scores: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    held_out: Sequence[Mapping[str, Any]] = (),
    results: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    config_yaml: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `index.html` and the PNG of each figure into the folder `out`, and return the page's path.

    All inputs are parsed records of the run: `prune` (removed, kept, protected, criterion, parameters), `scores`
    (scores.json), `metrics` and `held_out` (lines of metrics.jsonl and held_out.jsonl), `results` (results.json),
    `cost` (stages in seconds, train, hardware, versions), the resolved configuration as text, and `provenance`
    (model, data and notes on them). All but `prune` may be missing or partial. Raises RegrowError if the scores
    belong to a model with other blocks than the prune record's.
    """
    out.mkdir(parents=True, exist_ok=True)
    models = (results or {}).get("models", {})
    cost, prune, provenance = cost or {}, with_gaps(PRUNE_KEYS, prune), with_gaps(PROVENANCE_KEYS, provenance)
    blocks = len(prune["removed"]) + len(prune["kept"])
    perplexities = perplexity_rows(models)
    main = perplexities[0] if perplexities else None
    references = main["values"] if main else {}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals.update(notation=notation, MODELS=MODELS)
    page = environment.get_template("page.html.j2").render(
        name=name,
        blocks=blocks,
        prune=prune,
        states=block_states(prune),
        headline=headline(prune, references, cost),
        main=main,
        rows=comparison_rows(models, prune, perplexities),
        task_rows=task_rows(models),
        absent=[model for model in MODELS if model not in models],
        importance=_importance_drawings(scores, prune, out),
        curve=_curve_drawings(metrics, held_out, references, out),
        curve_differs=_loop_differs(held_out, references.get("pruned")),
        trained=bool(metrics),
        evaluated=any(line.get("held_out_perplexity") is not None for line in held_out),
        scores=scores,
        samples=sample_rows(models),
        generation=next((models[m]["generation"] for m in MODELS if models.get(m, {}).get("generation")), None),
        cost=cost,
        stages=stage_rows(cost),
        config_yaml=config_yaml,
        provenance=provenance,
    )
    path = out / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def with_gaps(keys: Sequence[str], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record with None for each of these keys that it lacks, so that a template can ask for all of them."""
    return dict.fromkeys(keys) | dict(record or {})


def block_states(prune: Mapping[str, Any]) -> list[str]:
    """`removed`, `protected` or `kept` for each block of the dense model, in order."""
    blocks = len(prune["removed"]) + len(prune["kept"])
    removed, protected = set(prune["removed"]), set(prune.get("protected") or ())
    return ["removed" if b in removed else "protected" if b in protected else "kept" for b in range(blocks)]


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


def headline(prune: Mapping[str, Any], references: Mapping[str, float | None], cost: Mapping[str, Any]) -> str:
    """The run's result in one sentence or two, saying only what was measured."""
    count, total = len(prune["removed"]), len(prune["removed"]) + len(prune["kept"])
    sizes = prune.get("parameters") or {}
    smaller = notation.change(sizes.get("pruned"), sizes.get("dense")).lstrip(notation.MINUS)
    text = f"{count} of {total} blocks removed" + (f", {smaller} fewer parameters" if smaller else "") + "."
    pruned, regrown = references.get("pruned"), references.get("regrown")
    if pruned is None:
        return f"{text} Held-out perplexity was not measured."
    number = notation.significant
    if regrown is None:
        return f"{text} Held-out perplexity is {number(pruned)} after pruning; the regrown model was not measured."
    seen = (cost.get("train") or {}).get("tokens")
    after = f" after {notation.tokens(seen)} tokens of training" if seen is not None else " after training"
    text += f" Held-out perplexity went from {number(pruned)} to {number(regrown)}{after}"
    dense = references.get("dense")
    return f"{text}; the dense model has {number(dense)}." if dense is not None else f"{text}."


def perplexity_rows(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per way of measuring, the held-out set first.

    Perplexities compare only on the same text, length and BOS policy: models measured otherwise get a row of
    their own. A row holds `set`, `length`, `bos`, `tokens` and `values`, which maps a model to its perplexity.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for model in MODELS:
        for name, entry in (models.get(model, {}).get("perplexity") or {}).items():
            protocol = {"set": name, **{key: entry.get(key) for key in ("length", "bos", "tokens")}}
            row = rows.setdefault(tuple(protocol.values()), {**protocol, "values": {}})
            row["values"][model] = entry.get("value")
    return sorted(rows.values(), key=lambda row: (row["set"] != "held_out", -len(row["values"])))


def protocol_words(row: Mapping[str, Any]) -> str:
    """How a perplexity was measured: `length 256, BOS policy: document, 20 k tokens`."""
    parts = [f"length {row['length']}"] if row["length"] is not None else []
    parts += [f"BOS policy: {row['bos']}"] if row["bos"] is not None else []
    parts += [f"{notation.tokens(row['tokens'])} tokens"] if row["tokens"] is not None else []
    return ", ".join(parts)


def comparison_rows(
    models: Mapping[str, Any], prune: Mapping[str, Any], perplexities: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of the table that sets the three models side by side.

    A row holds `label`, `note`, and `cells`: for each of the three models the number in words, for all but dense
    how it compares with dense, and the standard deviation where one was measured.
    """
    rows = []

    def add(label: str, note: str, values: Mapping[str, Any], write: Any, compare: Any) -> None:
        reference = values.get("dense")
        cells = []
        for model in MODELS:
            value = values.get(model)
            relative = "" if model == "dense" else compare(value, reference)
            cells.append({"text": write(value), "relative": relative, "spread": "", "missing": value is None})
        rows.append({"label": label, "note": note, "cells": cells})

    known = {model: models.get(model, {}) for model in MODELS}
    total, sizes = len(prune["removed"]) + len(prune["kept"]), prune.get("parameters") or {}
    depth = {"dense": total, "pruned": len(prune["kept"])} | _pick(known, "blocks")
    size = {model: sizes[model] for model in sizes if model in MODELS} | _pick(known, "parameters")
    add("Blocks", "", depth, lambda v: notation.MISSING if v is None else str(v), notation.change)
    add("Parameters", "", size, notation.parameters, notation.change)
    if not perplexities:
        add("Held-out perplexity", "", {}, notation.significant, notation.ratio)
    for row in perplexities:
        label = "Held-out perplexity" if row["set"] == "held_out" else f"Perplexity on {row['set']}"
        add(label, protocol_words(row), row["values"], notation.significant, notation.ratio)
    settings: dict[tuple, dict[str, Any]] = {}
    for model in MODELS:
        speed = known[model].get("generation") or {}
        if speed:
            key = (speed.get("prompt_tokens"), speed.get("new_tokens"), speed.get("batch"))
            settings.setdefault(key, {})[model] = speed
    for (prompt, new, batch), speeds in settings.items():
        note = f"{prompt} prompt + {new} new tokens, batch {batch}"
        spread = {m: s.get("latency_std") for m, s in speeds.items()}
        add("Latency", note, _pick(speeds, "latency_seconds"), notation.duration, notation.change)
        for cell, model in zip(rows[-1]["cells"], MODELS, strict=True):
            if spread.get(model) is not None and not cell["missing"]:
                cell["spread"] = f"\u00b1 {notation.duration(spread[model])}"
        add(
            "Throughput",
            "generated tokens per second",
            _pick(speeds, "tokens_per_second"),
            lambda v: notation.significant(v, 3),
            notation.change,
        )
        add("Peak memory", "while generating", _pick(speeds, "peak_memory_bytes"), notation.memory, notation.change)
    return rows


def task_rows(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per task and metric: `task`, `metric` and the three values (None where not measured)."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for model in MODELS:
        for task, entry in (models.get(model, {}).get("tasks") or {}).items():
            for metric, value in entry.items() if isinstance(entry, Mapping) else [("value", entry)]:
                if isinstance(value, int | float):
                    row = rows.setdefault((task, metric), {"task": task, "metric": metric, "values": {}})
                    row["values"][model] = value
    return list(rows.values())


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


def _draw(file: str, label: str, out: Path, build: Any) -> dict[str, Any]:
    """Draw once for a wide and once for a narrow window; the wide drawing is also written as PNG."""
    drawings: dict[str, Any] = {"file": f"{file}.png"}
    for width in ("wide", "narrow"):
        figure = build(narrow=width == "narrow")
        drawings[width] = Markup(figures.to_svg(figure, f"{file}-{width}", label))
        if width == "wide":
            figures.save_png(figure, out / drawings["file"])
    return drawings


def _importance_drawings(scores: Mapping[str, Any] | None, prune: Mapping[str, Any], out: Path) -> dict | None:
    """The importance bars by the criterion that chose the blocks, or by the first scored where none did."""
    scored = list((scores or {}).get("criteria") or {})
    if not scored:
        return None
    criterion = prune.get("criterion") if prune.get("criterion") in scored else scored[0]
    removed, protected = prune["removed"], prune.get("protected") or []
    label = f"Bars of block importance by {criterion}; removed blocks: {notation.block_list(removed)}."

    def build(narrow: bool) -> Any:
        return figures.block_importance(scores, removed, protected, criterion, narrow)

    return {"criterion": criterion} | _draw("block-importance", label, out, build)


def _curve_drawings(
    metrics: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    references: Mapping[str, float | None],
    out: Path,
) -> dict | None:
    """The learning curve, or None where neither half has anything to draw."""
    losses = [line.get("loss") for line in metrics] + [line.get("held_out_perplexity") for line in held_out]
    if not any(value is not None and math.isfinite(value) for value in losses):
        return None
    lines = {model: references.get(model) for model in ("dense", "pruned")}

    def build(narrow: bool) -> Any:
        return figures.learning_curve(metrics, held_out, lines, narrow)

    return _draw("learning-curve", "Training loss and held-out perplexity against tokens.", out, build)


def _loop_differs(held_out: Sequence[Mapping[str, Any]], pruned: float | None) -> bool:
    """Whether the loop's value before training is more than 2% off the pruned model's measured perplexity."""
    start = next((line.get("held_out_perplexity") for line in held_out if line.get("step") == 0), None)
    if start is None or pruned is None or not (math.isfinite(start) and math.isfinite(pruned)):
        return False
    return abs(start / pruned - 1) > 0.02
