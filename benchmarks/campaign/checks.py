"""What must hold of a training that was killed: against one that nothing disturbed, and of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaign.cases import STEPS
from pipeline.files import hash_file, read_json
from pipeline.training.metrics import read_lines

#: Files whose lines are the same.
LINES = ("held_out.jsonl", "samples.jsonl")
#: What is the same in a line of metrics.jsonl; the rest are times.
COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")


def differences(run: Path, reference: Path) -> Iterator[str]:
    """What a training that has ended has otherwise than the undisturbed one."""
    ours, theirs = run / "train", reference / "train"
    yield from other_bytes("exports", hashes(ours / "exports"), hashes(theirs / "exports"))
    yield from other_bytes("checkpoints", *kept_by_both(ours / "checkpoints", theirs / "checkpoints"))
    yield from (f"{path.name} is the rest of a save" for path in torn(ours))
    for name in LINES:
        if read_lines(ours / name) != read_lines(theirs / name):
            yield f"{name} has other lines"
    metrics = columns(ours)
    steps = [line[0] for line in metrics]
    if steps != list(range(1, STEPS + 1)):
        yield f"metrics.jsonl has the steps {steps}"
    elif metrics != columns(theirs):
        yield "metrics.jsonl has other losses, norms or rates"
    if (ours / "REQUEUE").exists():
        yield "REQUEUE asks for another start, and training has ended"
    if not (ours / "stage.json").exists():
        yield "the stage has no record"


def other_bytes(kind: str, found: dict[str, str], expected: dict[str, str]) -> Iterator[str]:
    """Where two folders' hashes differ."""
    if not expected:
        yield f"the undisturbed run has no {kind}"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected:
            yield f"{kind}/{name} is {'missing' if name in expected else 'not in the undisturbed run'}"
        elif found[name] != expected[name]:
            yield f"{kind}/{name} has other bytes"


def kept_by_both(ours: Path, theirs: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The hashes of checkpoints of two runs: of the last step, and of others that both have. A signal may have added
    one at a step of its own, and so have taken another away before its time."""
    found, expected = hashes(ours), hashes(theirs)
    both = {step_of(name) for name in found} & {step_of(name) for name in expected} | {f"step-{STEPS:08d}"}
    first, second = ({name: each[name] for name in each if step_of(name) in both} for each in (found, expected))
    return first, second


def step_of(name: str) -> str:
    """The checkpoint that a file below their folder belongs to."""
    return name.partition("/")[0]


def torn(train: Path) -> list[Path]:
    """Folders of checkpoints that are not complete."""
    return [path for path in sorted(train.glob("checkpoints/step-*")) if not (path / "COMPLETE").exists()]


def columns(train: Path) -> list[list[Any]]:
    """The lines of metrics.jsonl without their times."""
    return [[line[name] for name in COLUMNS] for line in read_lines(train / "metrics.jsonl")]


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder by its path."""
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def newest(train: Path) -> int:
    """The step of the newest complete checkpoint, 0 without one."""
    return max((int(path.parent.name[5:]) for path in train.glob("checkpoints/step-*/COMPLETE")), default=0)


def damage(train: Path) -> Iterator[str]:
    """What is wrong with the complete checkpoints of a run that was killed: files that are not as they were saved."""
    for marker in sorted(train.glob("checkpoints/step-*/COMPLETE")):
        for name, entry in read_json(marker)["files"].items():
            path = marker.parent / name
            if not path.is_file() or hash_file(path) != entry["sha256"]:
                yield f"{marker.parent.name}, which is complete, has {name} damaged or missing"
