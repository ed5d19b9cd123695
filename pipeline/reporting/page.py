"""The report of one run as a single HTML file that opens anywhere: no script, no font, no address outside it.

This module turns the run's records into what the template shows, in words and rounded numbers; the template
`page.html.j2` only lays it out. Whatever was not measured is named as such and never ends the report.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.reporting import comparison as ways
from pipeline.reporting import criteria, curves, notation
from pipeline.reporting.drawing import for_page
from pipeline.reporting.model_rows import (
    MODELS,
    latency_words,
    measure_rows,
    perplexity_rows,
    sample_rows,
    stage_rows,
    task_rows,
)

PRUNE_KEYS = (
    "protected",
    "criterion",
    "base_model",
    "parameters",
    "self_test",
    "selection",
    "stability",
    "greedy",
    "linear",
)
PROVENANCE_KEYS = ("model", "base_model", "model_note", "data", "data_note", "license", "language")


def render_page(
    *,
    name: str,
    prune: Mapping[str, Any],
    out: Path,
    scores: Mapping[str, Any] | None = None,
    comparison: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    held_out: Sequence[Mapping[str, Any]] = (),
    results: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    config_yaml: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `index.html` and the PNG of each figure into the folder `out`, and return the page's path.

    All inputs are parsed records of the run: `prune` (removed, kept, protected, criterion, parameters, selection,
    stability, greedy, linear), `scores` (scores.json), `comparison` (comparison.json: what other criteria, selections
    and controls would have removed, and the perplexity that each leaves before training), `metrics` and `held_out`
    (lines of metrics.jsonl and held_out.jsonl), `results` (results.json), `cost` (stages in seconds, train, hardware,
    versions), the resolved configuration as text, and `provenance` (model, data and notes on them). All but `prune`
    may be missing or partial. Raises RegrowError if the scores belong to a model with other blocks than the prune
    record's.
    """
    out.mkdir(parents=True, exist_ok=True)
    models = (results or {}).get("models", {})
    cost, prune, provenance = cost or {}, with_gaps(PRUNE_KEYS, prune), with_gaps(PROVENANCE_KEYS, provenance)
    blocks = len(prune["removed"]) + len(prune["kept"])
    perplexities = perplexity_rows(models)
    main = perplexities[0] if perplexities else None
    references = main["values"] if main else {}
    importance = criteria.importance_drawings(scores, prune, out)
    curve = _curve_drawings(metrics, held_out, references, out)
    shown = _criteria(scores, prune, comparison, importance, blocks, out)
    drawn = [importance, *shown["maps"], curve]
    pictures = [one["file"] for one in drawn if one] + (shown["lines"] or {"files": []})["files"]
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            name=name,
            blocks=blocks,
            prune=prune,
            states=block_states(prune),
            headline=headline(prune, references, cost),
            main=main,
            rows=measure_rows(models, prune, perplexities),
            latency=latency_words(models),
            task_rows=task_rows(models),
            absent=[model for model in MODELS if model not in models],
            importance=importance,
            criteria=shown,
            pictures=pictures,
            curve=curve,
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
    )
    path = out / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


@functools.cache
def _environment() -> Environment:
    """Templates are read and compiled once in a process."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["breakable"] = lambda words: Markup(str(escape(words)).replace("_", "_<wbr>"))
    environment.globals.update(notation=notation, MODELS=MODELS)
    return environment


def _criteria(
    scores: Mapping[str, Any] | None,
    prune: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    importance: Mapping[str, Any] | None,
    blocks: int,
    out: Path,
) -> dict[str, Any]:
    """All that the page shows of the criteria beyond the bars of the one that chose; empty where not recorded."""
    shown = importance["criterion"] if importance else None
    planned = (comparison or {}).get("planned") or len(prune["removed"])
    known = ways.ways_of(comparison, prune) if comparison else []
    return {
        "planned": planned,
        "certainty": criteria.certainty(scores, prune, shown),
        "others": criteria.other_bars(scores, prune, planned, shown),
        "maps": criteria.heat_maps(scores, prune, planned, out),
        "ppl_windows": criteria.ppl_windows(scores, planned),
        "linear_windows": criteria.linear_windows(scores, planned),
        "linear": criteria.linear_rows(prune),
        "protected": (comparison or {}).get("protected") or prune["protected"] or [],
        "overlap": ways.overlap(comparison, known, blocks) if comparison else None,
        "lines": criteria.perplexity_drawings(comparison, prune, out),
        "table": ways.perplexity_table(comparison, known) if comparison else None,
        "verdict": ways.verdict(comparison, known, prune) if comparison else [],
        "greedy": ways.greedy_table(comparison or {}, prune),
        "measured_on": ways.measured_on(comparison) if comparison else "",
    }


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
        return curves.learning_curve(metrics, held_out, lines, narrow)

    return for_page("learning-curve", "Training loss and held-out perplexity against tokens.", out, build)


def _loop_differs(held_out: Sequence[Mapping[str, Any]], pruned: float | None) -> bool:
    """Whether the loop's value before training is more than 2% off the pruned model's measured perplexity."""
    start = next((line.get("held_out_perplexity") for line in held_out if line.get("step") == 0), None)
    if start is None or pruned is None or not (math.isfinite(start) and math.isfinite(pruned)):
        return False
    return abs(start / pruned - 1) > 0.02
