"""Stages that another run has done (``run.from``), taken into this one: its files, linked where the disk can, and its
record, in one move, so that sizes, criteria, rates and seeds branch from one set of data and scores.

A stage is taken where it stands for this run's config, inputs and earlier stages as if it had been done here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import STAGES, Config, completed
from pipeline.errors import RegrowError
from pipeline.files import hash_json, link_or_copy, write_json
from pipeline.run import Run
from pipeline.stages.growing import earlier_outputs, grows
from pipeline.stages.stage import load_stage
from pipeline.stages.standing import config_differences, differences, fingerprint_of


def other_run(config: Config) -> Run | None:
    """The run that ``run.from`` names: a run of that name beside this one, or a run's folder; None where it is null.

    RegrowError where there is none, or it is this run.
    """
    named = config.run.source
    if named is None:
        return None
    folders = (config.run.folder / named, Path(named).expanduser())
    folder = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
    if folder is None:
        raise RegrowError(
            f"run.from {named}: neither a run in {config.run.folder} nor the folder of one (with its config.yaml)"
        )
    if folder.resolve() == config.run_folder.resolve():
        raise RegrowError(f"run.from {named}: that is this run; take another run.name, or leave run.from out")
    return Run(folder)


def takeable(stages: Sequence[str], again: Collection[str], config: Config, run: Run) -> list[str]:
    """The stages that may be taken for a command that carries out ``stages``: those up to its last one that have not
    begun here, but for what is to be done ``again``. RegrowError as ``other_run``, where there are any."""
    upto = STAGES[: STAGES.index(stages[-1]) + 1]
    found = [name for name in upto if name not in again and not _begun(run, name)]
    return found if found and other_run(config) is not None else []


def _begun(run: Run, stage: str) -> bool:
    folder = run.stage(stage)
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def take(wanted: Sequence[str], config: Config, run: Run, say: Callable[[str, str], None]) -> None:
    """Take those of the stages that fit, and ``say(stage, line)`` of each what became of it; the run is held."""
    other = other_run(config)
    if other is None:
        return
    if wanted:
        run.learn_hashes(other)
    for name in wanted:
        known, record = load_stage(name), other.record(name)
        # A page is of one run alone.
        if known.made_anew or record is None or any(run.record(earlier) is None for earlier in known.upstream):
            continue
        now = fingerprint_of(known, config, run)
        then = record["fingerprint"]
        if grows(known, completed(then["config"], name), now["config"]):
            then = {**then, "config": now["config"]}
        found = differences(known, then, now, run, known.readable_from) or _lost(other, name, record)
        if found:
            say(name, f"not taken from run {other.name}: {'; '.join(found)}")
        else:
            say(name, f"taken from run {other.name}: {_bring(other, run, name, record)}")


def _lost(other: Run, stage: str, record: dict[str, Any]) -> list[str]:
    """The stage's files that are no longer as the other run wrote them."""
    lost = []
    for name, entry in record["outputs"].items():
        path = other.stage(stage) / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            lost.append(f"{path} is missing, or of another size")
    return lost


def _bring(other: Run, run: Run, stage: str, record: dict[str, Any]) -> str:
    """Put the stage's results and record into this run: all or, whatever happens, nothing. Says how they came."""
    scratch = run.folder / f".{stage}.new"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        linked = sum(link_or_copy(other.stage(stage) / name, scratch / name) for name in record["outputs"])
        write_json(scratch / "stage.json", {**record, "taken": str(other.folder)})
        # Over an empty folder too.
        scratch.rename(run.stage(stage))
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise RegrowError(
            f"run.from {other.folder}: its stage {stage} could not be taken ({error.strerror}: {error.filename}); once "
            "that is mended, start the same command again, or leave run.from out"
        ) from error
    return f"{linked} files linked, {len(record['outputs']) - linked} copied"


def would_take(stages: Sequence[str], config: Config) -> Iterator[str]:
    """What ``take`` would do, a line for each stage, as far as configs and records say: files are not looked at."""
    other, run = other_run(config), Run(config.run_folder)
    if other is None:
        return
    taken: set[str] = {name for name in STAGES if run.record(name) is not None}
    for name in takeable(stages, (), config, run):
        known, record = load_stage(name), other.record(name)
        if known.made_anew or record is None or not taken.issuperset(known.upstream):
            continue
        then, now = completed(record["fingerprint"]["config"], name), config.read_by(name)
        found = [] if grows(known, then, now) else config_differences(name, record["fingerprint"], config)
        if not known.readable_from <= record["fingerprint"]["format"] <= known.format:
            found.append("another version of regrow wrote it")
        for earlier in known.upstream:
            ground = run.record(earlier) or other.record(earlier)
            if record["fingerprint"]["upstream"][earlier] not in {
                hash_json(ground["outputs"]),
                *earlier_outputs(ground),
            }:
                found.append(f"it was made of another {earlier}")
        if found:
            yield f"run.from {other.name}: {name} does not fit ({'; '.join(found)})"
        else:
            taken.add(name)
            yield f"run.from {other.name}: {name} will be taken where model and text are the same"
