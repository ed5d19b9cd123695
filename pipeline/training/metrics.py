"""Line files of a training run: one JSON line for each step, and never a step twice.

On a resume the lines behind the checkpoint's step are cut off in one atomic move; they are kept beside, so that
nothing that was measured is lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.run import RegrowError, write_atomic


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of the file; a last line that a kill left torn is dropped, a torn line elsewhere is refused."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    whole, torn = lines[:-1], lines[-1]
    records = []
    for number, line in enumerate(whole, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(whole) and not torn:
                break
            raise RegrowError(f"{path}:{number}: damaged line; move the file aside to go on without it") from None
    return records


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add one line in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def cut_after(path: Path, step: int) -> int:
    """Move the lines of steps behind ``step`` to NAME.discarded.jsonl; returns how many there were."""
    if not path.exists():
        return 0
    records = read_lines(path)
    kept = [record for record in records if record["step"] <= step]
    gone = [record for record in records if record["step"] > step]
    if gone:
        with path.with_suffix(".discarded.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in gone)
    # Also without lines to discard: the rewrite drops a torn last line.
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
    return len(gone)
