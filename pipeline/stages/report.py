"""Stage report: one page and one model card from what the run's folder holds; nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import STAGES, Config, dump_config
from pipeline.model.architecture import auto_class, own_code, read_config, tokenizer_code
from pipeline.reporting.card import render_card
from pipeline.reporting.page import render_page
from pipeline.run import Run, read_json, write_atomic
from pipeline.stages.stage import Stage
from pipeline.training.metrics import read_lines
from pipeline.world import World

FLOPS_FORMULA = "6 x (parameters without the input embedding) + 12 x blocks x width x row length, for each token"


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write report/index.html with its pictures, report/README.md, and the card into the last export."""
    records = {stage: run.record(stage) for stage in STAGES if stage != "report"}
    trained = records["train"]["result"]
    scores = read_json(run.stage("score") / "scores.json")
    prune = read_json(run.stage("prune") / "prune.json")
    results = read_json(run.stage("evaluate") / "results.json")
    compared = run.stage("prune") / "comparison.json"
    comparison = read_json(compared) if compared.exists() else None
    cost = {
        "stages": {stage: {"seconds": record["seconds"]} for stage, record in records.items()},
        "train": {
            "tokens": trained["tokens"],
            "steps": trained["steps"],
            "flops": trained["flops"],
            "flops_formula": FLOPS_FORMULA,
            "seconds": trained["seconds"],
            "processes": trained["processes"],
        },
        "hardware": records["train"]["hardware"],
        "versions": records["train"]["versions"],
    }
    sources = [{"path": source.path, "documents": None} for source in config.data.sources]
    if len(sources) == 1:
        sources[0]["documents"] = records["data"]["result"]["documents"]
    notes = config.report
    provenance = {
        "model": config.model.path,
        "base_model": notes.base_model,
        "model_note": notes.model_note,
        "data": sources,
        "data_note": notes.data_note,
        "license": notes.license,
        "language": notes.language,
    }
    title = notes.title or run.name
    folder = run.stage("report")
    page = render_page(
        name=title,
        prune=prune,
        out=folder,
        scores=scores,
        comparison=comparison,
        results=results,
        cost=cost,
        provenance=provenance,
        metrics=read_lines(run.stage("train") / "metrics.jsonl"),
        held_out=read_lines(run.stage("train") / "held_out.jsonl"),
        config_yaml=dump_config(config),
    )
    card = render_card(
        name=title,
        prune=prune,
        results=results,
        scores=scores,
        comparison=comparison,
        cost=cost,
        provenance=provenance,
        recipe=config.train.model_dump(mode="json"),
        **_loading(config, run.folder / trained["export"]),
    )
    write_atomic(folder / "README.md", card)
    write_atomic(run.folder / trained["export"] / "README.md", card)
    say(f"page: {page}")
    say(f"regrown model, with its card: {run.folder / trained['export']}")
    return {"page": page.relative_to(run.folder).as_posix()}


def _loading(config: Config, export: Path) -> dict[str, Any]:
    """How a folder is loaded, for its card: the class of transformers, and the code of model and tokenizer."""
    loader = auto_class(read_config(export, config.model.trust_remote_code))
    # Without leave the class is transformers' own, whatever the folder names beside it.
    code = sorted({*own_code(export), *tokenizer_code(export)}) if config.model.trust_remote_code else []
    return {"loader": loader.__name__, "custom_code": code}


STAGE = Stage(
    "report",
    upstream=("data", "score", "prune", "train", "evaluate"),
    format=1,
    work=work,
    # Nothing beyond the outputs of the stages.
    inputs=lambda config, run: {},
    launched=lambda config: False,
)
