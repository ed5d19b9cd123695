"""A stage that makes several things, each by itself, and is asked for more: what it has is kept, the rest is made.

That is stage score with one more criterion. While it grows it is not complete, and what it had stands in
``progress/before.json``; its new record says what it was before, so that what was made of that still stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import hash_json, read_json, write_json
from pipeline.run import Run
from pipeline.stages.stage import Stage

BEFORE = "before.json"


def grows(known: Stage, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether all that differs between two configs' values is that the stage is asked for more, or in another order."""
    key = known.grows_by
    if key is None or then.get(key) == now.get(key):
        return False
    return {**then, key: None} == {**now, key: None} and set(then[key]) <= set(now[key])


def reopen(known: Stage, run: Run, record: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Make the stage one that was begun with this fingerprint. Its record goes last: before that it is done."""
    folder = run.stage(known.name)
    made = read_json(folder / "scores.json")["criteria"]
    write_json(folder / "progress" / BEFORE, {"record": record, "criteria": made})
    write_json(folder / "progress" / "started.json", fingerprint)
    run.unfinish(known.name)


def progress_of(run: Run, stage: str, asked: Sequence[str]) -> Path:
    """Where a stage that is to make what is ``asked`` keeps how far it is: beside what it kept before it grew."""
    progress = run.stage(stage) / "progress"
    return progress / f"with-{'-'.join(asked)}" if (progress / BEFORE).exists() else progress


def kept_before(run: Run, stage: str) -> dict[str, Any]:
    """What the stage had made, by name, before it began to grow; empty where it has not."""
    path = run.stage(stage) / "progress" / BEFORE
    return read_json(path)["criteria"] if path.exists() else {}


def lineage(run: Run, stage: str) -> dict[str, Any]:
    """What the record of a stage that grew says of it: ``before``, of each time the hash of its outputs and its
    seconds; empty where it did not grow."""
    path = run.stage(stage) / "progress" / BEFORE
    if not path.exists():
        return {}
    record = read_json(path)["record"]
    own = {"outputs": hash_json(record["outputs"]), "seconds": record["seconds"], "finished": record["finished"]}
    return {"before": [*record.get("before", []), own]}


def earlier_outputs(record: Mapping[str, Any] | None) -> set[str]:
    """Hashes of what a stage's outputs were before it grew."""
    return {one["outputs"] for one in (record or {}).get("before", [])}
