"""The model card of the regrown model: a README.md as the Hugging Face Hub reads it, YAML front matter first.

The card says what a user must know before using the weights: which blocks are gone, how little or much training
followed, what was measured and how, and what was not. Every string of the front matter is written as JSON, which
is YAML 1.1 and 1.2 alike, so that a language code `no` stays a word under either reader.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.reporting import notation
from pipeline.reporting.chain import chain_rows, flops_in_all, tokens_in_all
from pipeline.reporting.comparison import best_control
from pipeline.reporting.criteria import linear_rows
from pipeline.reporting.identity import calibrated_on, text_lines, weight_lines, weight_words
from pipeline.reporting.making import LOADER, date_words, load_lines, public_command
from pipeline.reporting.model_rows import (
    MODELS,
    interval_words,
    left_out_words,
    perplexity_rows,
    protocol_words,
    recovered,
    sample_rows,
)
from pipeline.reporting.names import hub_dataset, is_hub_name, public_name
from pipeline.reporting.records import Record, Records
from pipeline.reporting.running import running_lines
from pipeline.reporting.tasks import task_rows, verdict


def render_card(records: Records, *, recipe: Record | None = None) -> str:
    """Return the text of the model card.

    `recipe` is the configuration's `train` section as a plain dict, without what the run did not use, shown key by key
    without those that are None. What is missing is said to be so; front-matter fields that are unknown are left out,
    as the Hub wants it.
    """
    made = records.whole_made
    return (
        _environment()
        .get_template("card.md.j2")
        .render(
            **_shown(records),
            recipe=_recipe_rows(recipe or {}),
            loader=made["loader"] or LOADER,
            load=load_lines(".", made),
            custom_code=made["custom_code"] or (),
            command=public_command(made["command"]),
            date=date_words(made["date"]),
        )
    )


def _recipe_rows(recipe: Record) -> Record:
    """The keys that say something: those that are not None, a section's by its own keys."""
    rows: Record = {}
    for key, value in recipe.items():
        rows |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in rows.items() if value is not None}


def _shown(records: Records) -> dict[str, Any]:
    """What the card says of the run's records."""
    models, cost = records.models, records.cost or {}
    prune, whole, provenance = records.whole_prune, records.prune_in_all, records.whole_provenance
    rows, sources, languages = perplexity_rows(models), provenance["data"] or (), provenance["language"]
    tasks = task_rows(models, records.paired)
    regrown = [row for row in rows if _finite(row["values"].get("regrown"))]
    base = provenance["base_model"] or provenance["model"] or prune["base_model"]
    return {
        "name": records.name,
        "base_model": public_name(base),
        "base_on_hub": is_hub_name(base),
        "datasets": [path for path in (hub_dataset(source["path"]) for source in sources) if path],
        "languages": [languages] if isinstance(languages, str) else list(languages or ()),
        "license": provenance["license"],
        "metrics": [{"row": row, "value": float(f"{row['values']['regrown']:.4g}")} for row in regrown],
        "prune": whole,
        "blocks": len(whole["removed"]) + len(whole["kept"]),
        "chain": chain_rows(prune, cost.get("train") or {}),
        "tokens": tokens_in_all(cost.get("train") or {}),
        "flops": flops_in_all(cost.get("train") or {}),
        "models": models,
        "rows": rows,
        "intervals": interval_words(rows),
        "weights": weight_lines(models),
        "named": {model: weight_words(models.get(model, {})) for model in MODELS},
        "texts": text_lines(models),
        "samples": sample_rows(models),
        "hardware": cost.get("hardware") or {},
        "left_out": left_out_words(records.results),
        "task_rows": tasks,
        "task_words": verdict(tasks),
        "running": running_lines(models),
        "recovered": recovered(rows[0]["values"]) if rows else None,
        "calibrated_on": calibrated_on(records.scores or {}),
        "choice": choice_words(prune, records.scores, records.comparison),
        "train": cost.get("train"),
        "versions": cost.get("versions") or {},
        "provenance": provenance,
        "sources": [{"name": public_name(source["path"]), "documents": source.get("documents")} for source in sources],
    }


@functools.cache
def _environment() -> Environment:
    """Templates are read and compiled once in a process."""
    environment = Environment(  # Markdown, not HTML: the filter `cell` escapes what it would act on
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.filters["cell"] = _cell
    environment.globals.update(notation=notation, MODELS=MODELS, protocol_words=protocol_words)
    return environment


def choice_words(
    prune: Mapping[str, Any], scores: Mapping[str, Any] | None, comparison: Mapping[str, Any] | None
) -> str:
    """How the blocks were chosen and how that compares, in a few sentences; empty where only a criterion is known."""
    words = []
    if prune.get("criterion") and prune.get("selection"):
        words.append(f"The blocks were chosen by {prune['criterion']}, selection: {prune['selection']}.")
    entry = ((scores or {}).get("criteria") or {}).get(prune.get("criterion")) or {}
    known = [span for span in entry.get("interval") or () if span and all(_finite(end) for end in span)]
    if known:
        words.append(
            "Each block's score has a 95 % bootstrap interval over the calibration sequences (in scores.json)."
        )
    found = prune.get("stability")
    if found:
        state = "is partly within noise" if found.get("unsettled") else "is outside noise"
        same, stays = notation.percent(found.get("same_set")), notation.percent(found.get("agreement"))
        words.append(
            f"The choice {state}: calibration sequences drawn again with replacement give exactly this set in {same} "
            f"of the draws, and {stays} of it on average."
        )
    linear = linear_rows(prune)
    if linear:
        into = f" (blocks {'; '.join(linear['folded'])})" if linear["folded"] else ""
        words.append(f"Linear maps stand in for the removed blocks, folded into the kept ones{into}.")
        if linear["texts"]:
            without, mapped = (row["cells"][0] for row in linear["rows"])
            words.append(
                f"Before training, {linear['texts'][0]} perplexity is {mapped} with the maps, {without} without."
            )
    control = best_control(comparison, prune)
    if control:
        chosen = "" if control["chosen"] is None else f"; this choice has {notation.perplexity(control['chosen'])}"
        chosen += " without its maps" if chosen and control["map_left_out"] else ""
        words.append(
            f"With {control['count']} blocks removed and no training, the best control ({control['by']}) has a "
            f"{control['text']} perplexity of {notation.perplexity(control['value'])}{chosen}."
        )
    return " ".join(words)


def _cell(value: object) -> str:
    """Text for a Markdown table or list: on one line, with the signs that Markdown or HTML would act on escaped."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
