"""The runs of a folder in one table, and under each what was set aside of it, read from the folders alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.commands.table import aligned
from pipeline.config import STAGES, steps_of
from pipeline.config.tree import RunSection
from pipeline.errors import RegrowError, first_line
from pipeline.files import of_bytes, read_json
from pipeline.run import Run
from pipeline.stages.aside import chain_of, made_from, stages_in
from pipeline.training.metrics import read_lines

HEAD = ("run", "done", "blocks", "perplexity", "on disk", "date")
RIGHT = (2, 3, 4)
#: What is not known, or not there.
NONE = "-"
#: What a perplexity of training's own held-out rows is marked with.
MARK = "*"


def runs_text(folder: Path | None) -> str:
    """Lines for people on the runs in ``folder``, or on the run that it is; None: the default of ``run.folder``.

    RegrowError where there is no such folder, or it cannot be read.
    """
    folder = RunSection.model_fields["folder"].default if folder is None else folder
    try:
        own = (folder / "config.yaml").is_file()
        folders = [folder] if own else sorted((path for path in folder.iterdir() if path.is_dir()), key=_natural)
    except OSError as error:
        raise RegrowError(f"{folder}: cannot be read ({error.strerror}); name the folder that holds the runs") from None
    if not folders:
        return f"no run in {folder}"
    seen: dict[tuple[int, int], int] = {}
    rows = [row for each in folders for row in _rows(Run(each), seen)]
    lines = aligned([HEAD, *rows], RIGHT)
    if any(MARK in cell for row in rows for cell in row[3:4]):
        lines.append(f"{MARK} of training's own held-out rows, which the evaluation's need not be")
    lines.append(f"on disk in all: {of_bytes(sum(seen.values()))}; files that runs share are counted once")
    if any(len(row) == len(HEAD) and row[0].startswith(" ") for row in rows):
        lines.append("put back: regrow restore RUN ASIDE, such as regrow restore runs/demo 001")
    return "\n".join(lines)


def _natural(path: Path) -> list[Any]:
    """Sorts run-2 before run-10, and a chain before its links."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _rows(run: Run, seen: dict[tuple[int, int], int]) -> Iterable[tuple[str, ...]]:
    """The row of a run and those of what was set aside, or one that says why there is none."""
    try:
        if not (run.folder / "config.yaml").is_file():
            yield run.name, "not a run: no config.yaml in it"
            return
        if not stages_in(run.folder) and not run.asides():
            links = [folder for folder in run.folder.parent.glob(f"{run.name}-*") if _is_link(folder, run)]
            yield run.name, f"chain of runs, {len(links)} begun" if links else f"nothing done yet{_at_work(run)}"
            return
        yield _row(run.name, run.folder, seen, _at_work(run))
        for aside in run.asides():
            if stages_in(aside):
                yield _row(f"  aside {aside.name}", aside, seen)
    except (OSError, RegrowError, KeyError, TypeError, ValueError) as error:
        yield run.name, f"cannot be read: {first_line(error)}"


def _is_link(folder: Path, run: Run) -> bool:
    chain = chain_of(Run(folder))
    return chain is not None and chain.folder == run.folder


def _at_work(run: Run) -> str:
    holder = run.holder()
    return f", in use by {holder}" if holder else ""


def _row(name: str, folder: Path, seen: dict[tuple[int, int], int], at_work: str = "") -> tuple[str, ...]:
    """What the stages in a run's folder, or in an aside, came to; the files' sizes go into ``seen``."""
    records = {stage: Run(folder).record(stage) for stage in stages_in(folder)}
    done = {stage: record for stage, record in records.items() if record is not None}
    begun = [stage for stage in records if stage not in done and made_from(folder / stage) is not None]
    words = [_listed(list(done))] if done else []
    words += [f"{stage} {_place(folder / stage) if stage == 'train' else 'begun'}" for stage in begun]
    files = _files(folder)
    seen |= files
    return (
        name,
        ", ".join(words) + at_work,
        _blocks(folder),
        _perplexity(folder, done),
        of_bytes(sum(files.values())),
        _date(folder, done, begun),
    )


def _listed(stages: list[str]) -> str:
    """Stages in words: `all`, `data to prune`, `evaluate, report`."""
    if stages == list(STAGES):
        return "all"
    first = STAGES.index(stages[0])
    together = len(stages) > 2 and stages == list(STAGES[first : first + len(stages)])
    return f"{stages[0]} to {stages[-1]}" if together else ", ".join(stages)


def _place(train: Path) -> str:
    """Where training stands."""
    values = (made_from(train) or {})["config"]
    steps = steps_of(values["train.tokens"], values["train.global_batch"], values["data.row_length"])
    lines = read_lines(train / "metrics.jsonl")
    return f"at step {lines[-1]['step'] if lines else 0:,} of {steps:,}"


def _blocks(folder: Path) -> str:
    """The blocks of what is or will be trained, of those of the first dense model."""
    path, then = folder / "prune" / "prune.json", made_from(folder / "train")
    if not path.is_file():
        return NONE
    prune = read_json(path)
    kept, first = len(prune["kept"]), prune.get("first") or {}
    dense = first.get("dense_blocks") or kept + len(prune["removed"])
    left = {"pruned": kept, "random": kept, "dense": dense}.get(
        (then or {"config": {}})["config"].get("train.init", "pruned")
    )
    return NONE if left is None else f"{left} of {dense}"


def _perplexity(folder: Path, done: Mapping[str, Mapping[str, Any]]) -> str:
    """Of the regrown model on held-out text as the evaluation measured it, or as training did last."""
    judged = done["evaluate"]["result"].get("regrown") if "evaluate" in done else None
    if judged is not None:
        return f"{judged:,.2f}"
    lines = read_lines(folder / "train" / "held_out.jsonl")
    last = lines[-1].get("held_out_perplexity") if lines else None
    return NONE if last is None else f"{last:,.2f}{MARK}"


def _date(folder: Path, done: Mapping[str, Mapping[str, Any]], begun: list[str]) -> str:
    """When the last stage was finished, or written to."""
    dates = [record["finished"][:16].replace("T", " ") for record in done.values()]
    for stage in begun:
        for path in (folder / stage / "progress" / "started.json", folder / stage / "metrics.jsonl"):
            if path.exists():
                dates.append(f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}")
    return max(dates, default=NONE)


def _files(folder: Path) -> dict[tuple[int, int], int]:
    """What every file takes on disk, in bytes, by its device and number: one of several names counts once. What was set
    aside of a run is none of its own."""
    found = {}
    for place, folders, names in os.walk(folder):
        if Path(place) == folder and "aside" in folders:
            folders.remove("aside")
        for name in names:
            status = os.lstat(os.path.join(place, name))
            found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
