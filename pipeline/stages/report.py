"""Stage report: one page and one model card from what the run's folder holds; nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import STAGES, Config, dump_config
from pipeline.files import hash_file, read_json, write_atomic
from pipeline.following import AT_ITS_END
from pipeline.model.architecture import auto_class, own_code, read_config, tokenizer_code
from pipeline.run import Run
from pipeline.stages.curve import curve_file
from pipeline.stages.stage import Stage
from pipeline.training.metrics import read_lines
from pipeline.world import World

if TYPE_CHECKING:
    from pipeline.reporting.records import Records


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write report/index.html with its pictures, report/README.md, and the card into the last export."""
    # The first stages of a run need not wait for matplotlib.
    from pipeline.reporting.card import render_card
    from pipeline.reporting.page import render_page

    stages = {stage: run.record(stage) for stage in STAGES if stage != "report"}
    export = run.folder / stages["train"]["result"]["export"]
    folder, records = run.stage("report"), _told(config, run, stages)
    page = render_page(records, folder)
    card = render_card(records, recipe=recipe_of(config))
    write_atomic(folder / "README.md", card)
    write_atomic(export / "README.md", card)
    say(f"page: {page}")
    say(f"regrown model, with its card: {export}")
    return {"page": page.relative_to(run.folder).as_posix()}


def _told(config: Config, run: Run, stages: dict[str, dict[str, Any]]) -> Records:
    """All that page and card are made of; ``stages`` are the records of those before this one."""
    provenance = _provenance(config, stages["data"]["result"])
    return replace(records_of(config, run), provenance=provenance, made=_made(config, run.folder, stages["train"]))


def records_of(config: Config, run: Run) -> Records:
    """What the run's folder holds, read, whichever stages behind prune are done; without ``provenance`` and ``made``.
    RegrowError where a file is damaged, or stage prune is not done."""
    from pipeline.reporting.records import Records

    known = (("score", "scores.json"), ("prune", "comparison.json"), ("evaluate", "results.json"))
    paths = [run.stage(stage) / name for stage, name in known]
    scores, comparison, results = (read_json(path) if path.exists() else None for path in paths)
    return Records(
        config.report.title or run.name,
        prune=read_json(run.stage("prune") / "prune.json"),
        scores=scores,
        comparison=comparison,
        metrics=read_lines(run.stage("train") / "metrics.jsonl"),
        held_out=read_lines(run.stage("train") / "held_out.jsonl"),
        tasks=read_lines(run.stage("train") / "tasks.jsonl"),
        curve=read_lines(curve_file(run)),
        results=results,
        cost=_cost(config, run),
        config_yaml=dump_config(config),
    )


def _cost(config: Config, run: Run) -> dict[str, Any]:
    """What the run took, and on what, as far as it got."""
    stages = {stage: record for stage in STAGES if stage != "report" and (record := run.record(stage)) is not None}
    cost: dict[str, Any] = {"stages": {stage: {"seconds": record["seconds"]} for stage, record in stages.items()}}
    if "train" not in stages:
        return cost
    trained = stages["train"]["result"]
    return cost | {
        "train": {
            "tokens": trained["tokens"],
            "steps": trained["steps"],
            "flops": trained["flops"],
            "flops_formula": flops_formula(config, trained.get("teacher_flops_per_token", 0.0)),
            "seconds": seconds_of(trained),
            "processes": trained["processes"],
            "healed": trained.get("healed") is not None,
            "row_length": config.data.row_length,
            **{key: trained.get(key) for key in AT_ITS_END},
            "before": trained.get("before", []),
        },
        "hardware": stages["train"]["hardware"],
        "versions": stages["train"]["versions"],
    }


def seconds_of(trained: Mapping[str, Any]) -> float:
    """The time of training, from the result of stage train."""
    # The name that it had in records of format 2.
    return trained["seconds"] if "seconds" in trained else trained["seconds_in_steps"]


def flops_of(trained: Mapping[str, Any]) -> float:
    """FLOPs of training, from the same: with those of a teacher that was asked ahead, and of healing."""
    healed = trained.get("healed") or {"flops": 0}
    return trained["flops"] + trained.get("answer_flops", 0) + healed["flops"]


def _made(config: Config, folder: Path, train: dict[str, Any]) -> dict[str, Any]:
    """What made the regrown model, and how it is loaded; ``train`` is the record of stage train."""
    export = folder / train["result"]["export"]
    made = {"command": train.get("command"), "date": train["finished"], "export": str(export)}
    return made | _loading(config, export)


def _provenance(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    """Where model and text come from; ``data`` is the result of stage data, which counts documents in all."""
    sources = [{"path": source.path, "documents": None} for source in config.data.sources]
    if len(sources) == 1:
        sources[0]["documents"] = data["documents"]
    notes = config.report
    return {
        "model": config.model.dense or config.model.path,
        "base_model": notes.base_model,
        "model_note": notes.model_note,
        "data": sources,
        "data_note": notes.data_note,
        "license": notes.license,
        "language": notes.language,
    }


def flops_formula(config: Config, teacher: float) -> str:
    """How FLOPs are counted, in words; ``teacher``: those of a teacher's forward for a token, 0 where none was beside
    training."""
    parameters = "6 x (parameters without the input embedding)"
    if config.train.method == "lora":
        parameters = "4 x (frozen parameters without the input embedding) + 6 x (parameters of adapters)"
    words = f"{parameters} + 12 x blocks x width x row length"
    if teacher:
        words += (
            " + the teacher's forward: 2 x (its parameters without the input embedding) + 4 x its blocks x its width x "
            "row length"
        )
    return f"{words}, for each token"


def recipe_of(config: Config) -> dict[str, Any]:
    """The keys of training and their values, for the card: a section's only where the run used it, and of folders
    their names alone, since a card is public."""
    asked, recipe = config.train, config.train.model_dump(mode="json", exclude={"distill": {"store"}})
    healing, lora, distill = (recipe.pop(section) for section in ("healing", "lora", "distill"))
    recipe["init"] = Path(asked.init).name
    if asked.heal != "none":
        recipe["healing"] = healing
    if asked.method == "lora":
        recipe["lora"] = lora
    if asked.objective == "distill":
        # The share of the divergence is all of the loss.
        del distill["weight"]
    if asked.objective != "lm":
        recipe["distill"] = {**distill, "teacher": Path(asked.distill.teacher).name}
    return recipe


def _loading(config: Config, export: Path) -> dict[str, Any]:
    """How a folder is loaded, for its card: the class of transformers, and the code of model and tokenizer."""
    loader = auto_class(read_config(export, config.model.trust_remote_code))
    # Without leave the class is transformers' own, whatever the folder names beside it.
    code = sorted({*own_code(export), *tokenizer_code(export)}) if config.model.trust_remote_code else []
    return {"loader": loader.__name__, "custom_code": code}


def inputs(config: Config, run: Run) -> dict[str, str]:
    """What was judged of exports, which may grow when all stages are done."""
    path = curve_file(run)
    return {f"evaluate/{path.name}": hash_file(path)} if path.exists() else {}


STAGE = Stage(
    "report",
    upstream=("data", "score", "prune", "train", "evaluate"),
    format=1,
    work=work,
    inputs=inputs,
    launched=lambda config: False,
    # It has none that another page could be made from.
    progress_fits_any_config=True,
    made_anew=True,
)
