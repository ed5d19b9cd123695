"""Compare: runs beside one another, on a page and in a short table, from their folders alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import chain_links
from pipeline.commands.table import aligned
from pipeline.config import Config, load_written
from pipeline.errors import RegrowError
from pipeline.files import hash_json, read_json, write_atomic
from pipeline.reporting import notation
from pipeline.reporting.arm_rows import NOTHING, cost_rows, ratio_words
from pipeline.reporting.arms import HELD_OUT, Arm, judged_rows
from pipeline.reporting.arms_page import apart_words, hours_word, render_arms
from pipeline.reporting.intervals import perplexity_interval
from pipeline.run import Run
from pipeline.stages.aside import Former, is_aside
from pipeline.stages.report import flops_of, records_of, seconds_of

#: The page's name, where none is asked for.
PAGE = "compare.html"


def compare(folders: Sequence[Path], out: Path | None) -> str:
    """Write the page that compares the runs in ``folders`` (a chain's folder stands for its last run that trained), to
    ``out`` or beside the first of them. Returns lines for people.

    RegrowError where there are fewer than two, one stands there twice, or one is no run or has pruned nothing yet.
    """
    if len(folders) < 2:
        raise RegrowError("a comparison takes two runs or more; regrow runs shows those that there are")
    read = [_run(folder) for folder in folders]
    runs = [run for run, _ in read]
    for number, run in enumerate(runs):
        if run.folder.resolve() in [other.folder.resolve() for other in runs[:number]]:
            raise RegrowError(f"{run.folder} is named twice; name each run once")
    alike = len({run.name for run in runs}) < len(runs)
    arms = [_arm(run, config, str(run.folder) if alike else run.name) for run, config in read]
    page = out or folders[0].absolute().parent / PAGE
    if page.is_dir():
        raise RegrowError(f"--out {page}: that is a folder; name a file, such as {page / PAGE}")
    write_atomic(page, render_arms(arms))
    return "\n".join([*comparison_lines(arms), f"page: {os.path.relpath(page)}"])


def comparison_lines(arms: Sequence[Arm]) -> list[str]:
    """A row for each run: its size, what its training took, and the perplexity on those held-out rows that most of the
    regrown models were judged on, with its interval, and its ratio to the first one's."""
    costs = cost_rows(arms, hours_word(arms))
    judged = [one for one in judged_rows(arms) if any(model == "regrown" for _, model in one.entries)]
    rows = [["run", *(row["label"].lower() for row in costs if row["label"] != "Files of weights")]]
    rows[0] += ["perplexity", "95% interval", "to the first"]
    of_rows = judged[0] if judged else None
    entries: Mapping[int, Any] = (
        {number: entry for (number, model), entry in of_rows.entries.items() if model == "regrown"} if of_rows else {}
    )
    for number, arm in enumerate(arms):
        cells = [row["cells"][number]["text"] for row in costs if row["label"] != "Files of weights"]
        entry = entries.get(number)
        value = NOTHING if entry is None else notation.significant(entry.get("value"))
        interval = "" if entry is None else notation.between(perplexity_interval(entry))
        ratio = "" if entry is None or number == min(entries) else ratio_words(entry, entries[min(entries)])
        rows.append([arm.name, *cells, value, interval, ratio])
    lines = aligned(rows, range(1, len(rows[0]) - 2))
    if of_rows is not None:
        lines.append(f"perplexity of the regrown models on {of_rows.label}; {NOTHING}: not judged on these rows")
    else:
        lines.append("no regrown model was judged yet")
    groups = [{"label": one.name, "differs": one.differs} for one in judged if one.name == HELD_OUT]
    return lines + apart_words(groups)


def _run(folder: Path) -> tuple[Run, Config]:
    """The run in a folder, with its config; of a chain its last link that trained."""
    if not (folder / "config.yaml").is_file():
        raise RegrowError(f"{folder}: not a run's folder (no config.yaml in it)")
    run, config = Former(folder) if is_aside(folder) else Run(folder), load_written(folder / "config.yaml")
    if config.chain.parts is not None:
        links = [Run(folder.parent / link.run.name) for link in chain_links(config)]
        trained = [link for link in links if (link.stage("train") / "metrics.jsonl").exists()]
        if not trained:
            raise RegrowError(f"{folder}: none of this chain's {len(links)} runs has trained yet")
        run = trained[-1]
        config = load_written(run.folder / "config.yaml")
    if not (run.stage("prune") / "prune.json").is_file():
        raise RegrowError(f"run {run.name}: stage prune is not done, so that there is nothing to compare yet")
    return run, config


def _arm(run: Run, config: Config, name: str) -> Arm:
    """What a run's folder holds, as one of those that are compared."""
    record = run.record("train")
    results = [] if record is None else [*_before(run, record["result"]), record["result"]]
    known = bool(results) and None not in results
    return Arm(
        name,
        records=records_of(config, run),
        values=config.values(),
        encoding=_encoding(config, run),
        in_training=_in_training(config, run),
        steps=config.steps,
        flops=sum(flops_of(one) for one in results) if known else None,
        hours=sum(_hours(one) for one in results) if known else None,
        hours_before=sum(_hours(one) for one in results[:-1]) if known else None,
        device=None if record is None else record["hardware"]["device"],
    )


def _before(run: Run, result: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """The results of training of the runs before this one in its chain; None of one whose folder is not there."""
    records = [Run(run.folder.parent / one["run"]).record("train") for one in result.get("before") or ()]
    return [None if record is None else record["result"] for record in records]


def _hours(trained: dict[str, Any]) -> float:
    return seconds_of(trained) * trained["processes"] / 3600


def _encoding(config: Config, run: Run) -> str:
    """A hash of all that turns text into rows of ids: the tokenizer's own files, and what stands between documents."""
    record = run.record("prune") or {"outputs": {}}
    files = {name: entry["sha256"] for name, entry in record["outputs"].items() if name.startswith("model/tokenizer.")}
    return hash_json([files, config.data.separator, config.data.special_tokens])


def _in_training(config: Config, run: Run) -> dict[str, Any]:
    """What fixes the held-out rows that training asks."""
    manifest = run.stage("data") / "manifest.json"
    return {
        "text": hash_json(read_json(manifest)["held_out"]) if manifest.exists() else None,
        "length": config.data.row_length,
        "attention": "within" if config.data.attention == "within" else None,
    }
