"""The report of one run as a single HTML file that opens anywhere: no script, no font, no address outside it.

This module turns the run's records into what the template shows, in words and rounded numbers; the template
`page.html.j2` and those that it includes only lay it out. Whatever was not measured is named as such and never ends
the report.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.reporting import comparison as ways
from pipeline.reporting import criteria, notation
from pipeline.reporting.chain import chain_rows, flops_in_all, tokens_in_all
from pipeline.reporting.drawing import for_page
from pipeline.reporting.greedy import greedy_table
from pipeline.reporting.identity import calibrated_on, text_lines, weight_lines, weight_words
from pipeline.reporting.learning import learning_curve
from pipeline.reporting.making import made_words
from pipeline.reporting.model_rows import (
    MODELS,
    interval_words,
    latency_words,
    left_out_words,
    measure_rows,
    micro_batch_words,
    perplexity_rows,
    sample_rows,
    stage_rows,
)
from pipeline.reporting.records import Record, Records
from pipeline.reporting.running import running_drawings, running_table
from pipeline.reporting.series import references as curve_references
from pipeline.reporting.steps import step_drawings
from pipeline.reporting.tasks import WORDS, task_rows, verdict


def render_page(records: Records, out: Path) -> Path:
    """Write `index.html` and the PNG of each figure into the folder `out`, and return the page's path.

    Raises RegrowError if the scores belong to a model with other blocks than the prune record's.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "index.html"
    path.write_text(environment().get_template("page.html.j2").render(**_shown(records, out)), encoding="utf-8")
    return path


def _shown(records: Records, out: Path) -> dict[str, Any]:
    """What the template lays out: the records in words and rounded numbers, and the figures, drawn into `out`."""
    models, prune, cost = records.models, records.whole_prune, records.cost or {}
    whole, trained = records.prune_in_all, cost.get("train") or {}
    perplexities, tasks = perplexity_rows(models), task_rows(models, records.paired)
    main = perplexities[0] if perplexities else None
    importance = criteria.importance_drawings(records.scores, prune, out)
    lines, apart = curve_references(models, records.held_out, records.curve, trained.get("row_length"))
    curve = _curve_drawings(records, lines, out)
    shown = _criteria(records, importance, out)
    costs, steps = running_drawings(models, out), step_drawings(records.metrics, out)
    drawn = [importance, *shown["maps"], curve, steps, *costs]
    healed = bool((cost.get("train") or {}).get("healed"))
    return {
        "name": records.name,
        "blocks": records.blocks,
        "prune": prune,
        "whole": whole,
        "states": block_states(whole),
        "headline": headline(whole, main, tokens_in_all(trained)),
        "chain": chain_rows(prune, trained),
        "tokens": tokens_in_all(trained),
        "flops": flops_in_all(trained),
        "main": main,
        "rows": measure_rows(models, whole, perplexities),
        "rows_at_once": micro_batch_words(models),
        "left_out": left_out_words(records.results),
        "weights": weight_lines(models),
        "named": {model: weight_words(models.get(model, {})) for model in MODELS},
        "texts": text_lines(models),
        "intervals": interval_words(perplexities),
        "latency": latency_words(models),
        "task_rows": tasks,
        "task_words": verdict(tasks),
        "absent": [model for model in MODELS if model not in models],
        "importance": importance,
        "criteria": shown,
        "pictures": [one["file"] for one in drawn if one] + (shown["lines"] or {"files": []})["files"],
        "curve": curve,
        "steps": steps,
        "running": running_table(models),
        "running_drawings": costs,
        "healed": healed,
        "references": list(lines),
        "errors_known": bool(records.curve or records.tasks)
        or any(line.get("held_out_stderr") for line in records.held_out),
        "apart": apart,
        "curve_differs": not healed and _loop_differs(records.held_out, lines.get("pruned")),
        "trained": bool(records.metrics),
        "exports_judged": len({line["step"] for line in records.curve}),
        "evaluated": any(line.get("held_out_perplexity") is not None for line in records.held_out),
        "scores": records.scores,
        "calibrated_on": calibrated_on(records.scores or {}),
        "samples": sample_rows(models),
        "generation": next((models[m]["generation"] for m in MODELS if models.get(m, {}).get("generation")), None),
        "cost": cost,
        "stages": stage_rows(cost),
        "config_yaml": records.config_yaml,
        "provenance": records.whole_provenance,
        "made": made_words(records.whole_made),
    }


@functools.cache
def environment() -> Environment:
    """Templates are read and compiled once in a process."""
    loaded = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    loaded.filters["breakable"] = lambda words: Markup(str(escape(words)).replace("_", "_<wbr>"))
    loaded.globals.update(notation=notation, MODELS=MODELS, KIND_WORDS=WORDS)
    return loaded


def _criteria(records: Records, importance: Record | None, out: Path) -> dict[str, Any]:
    """All that the page shows of the criteria beyond the bars of the one that chose; empty where not recorded."""
    scores, prune, comparison = records.scores, records.whole_prune, records.comparison
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
        "overlap": ways.overlap(comparison, known, records.blocks) if comparison else None,
        "lines": criteria.perplexity_drawings(comparison, prune, out),
        "table": ways.perplexity_table(comparison, known) if comparison else None,
        "verdict": ways.verdict(comparison, known, prune) if comparison else [],
        "greedy": greedy_table(comparison or {}, prune),
        "measured_on": ways.measured_on(comparison) if comparison else "",
    }


def block_states(prune: Mapping[str, Any]) -> list[str]:
    """`removed`, `protected` or `kept` for each block of the dense model, in order."""
    blocks = len(prune["removed"]) + len(prune["kept"])
    removed, protected = set(prune["removed"]), set(prune.get("protected") or ())
    return ["removed" if b in removed else "protected" if b in protected else "kept" for b in range(blocks)]


def headline(prune: Mapping[str, Any], main: Mapping[str, Any] | None, seen: int | None) -> str:
    """The run's result in one sentence or two, saying only what was measured, after ``seen`` tokens of training.
    ``main`` is the row of the perplexities that it tells, with their 95 % intervals where they are known."""
    count, total = len(prune["removed"]), len(prune["removed"]) + len(prune["kept"])
    sizes = prune.get("parameters") or {}
    smaller = notation.change(sizes.get("pruned"), sizes.get("dense")).lstrip(notation.MINUS)
    text = f"{count} of {total} blocks removed" + (f", {smaller} fewer parameters" if smaller else "") + "."
    values, intervals = (main["values"], main["intervals"]) if main else ({}, {})
    after = f" after {notation.tokens(seen)} tokens of training" if seen is not None else " after training"

    def number(model: str) -> str:
        spread = notation.between(intervals.get(model))
        return notation.significant(values[model]) + (f" ({spread})" if spread else "")

    if values.get("pruned") is None and values.get("regrown") is None:
        return f"{text} Held-out perplexity was not measured."
    if values.get("pruned") is None:
        return f"{text} Held-out perplexity is {number('regrown')}{after}; the pruned model was not measured."
    if values.get("regrown") is None:
        return f"{text} Held-out perplexity is {number('pruned')} after pruning; the regrown model was not measured."
    text += f" Held-out perplexity went from {number('pruned')} to {number('regrown')}{after}"
    return f"{text}; the dense model has {number('dense')}." if values.get("dense") is not None else f"{text}."


def _curve_drawings(records: Records, references: Mapping[str, float], out: Path) -> dict | None:
    """The learning curve, or None where no part of it has anything to draw."""
    metrics, held_out = records.metrics, records.held_out
    processes = ((records.cost or {}).get("train") or {}).get("processes")
    losses = [line.get("loss") for line in metrics] + [line.get("held_out_perplexity") for line in held_out]
    asked = records.tasks or records.curve
    if not asked and not any(value is not None and math.isfinite(value) for value in losses):
        return None

    def build(narrow: bool) -> Any:
        return learning_curve(metrics, held_out, references, narrow, records.tasks, processes, records.curve)

    return for_page("learning-curve", "Training loss, perplexity and tasks against tokens.", out, build)


def _loop_differs(held_out: Sequence[Mapping[str, Any]], pruned: float | None) -> bool:
    """Whether the loop's value before training is more than 2% off the pruned model's measured perplexity."""
    start = next((line.get("held_out_perplexity") for line in held_out if line.get("step") == 0), None)
    if start is None or pruned is None or not (math.isfinite(start) and math.isfinite(pruned)):
        return False
    return abs(start / pruned - 1) > 0.02
