"""Line files of a training run: one JSON line for each step, and never a step twice.

On a resume the lines behind the checkpoint's step are cut off in one atomic move; they are kept beside, so that
nothing that was measured is lost.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RegrowError
from pipeline.files import write_atomic

if TYPE_CHECKING:
    from pipeline.training.loop import Step

#: Steps at the end of metrics.jsonl that say how fast a run is: one alone may hold a checkpoint, or a slow fetch.
WINDOW = 20
#: At least so many bytes are read for each line that is wanted from a file's end; most are shorter.
BYTES = 2000


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


def last_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """As ``read_lines``, the last ``count`` at most, without reading a file of hundreds of thousands of steps."""
    whole: list[bytes] = []
    if path.exists() and (size := path.stat().st_size) > BYTES * count:
        with path.open("rb") as file:
            file.seek(size - BYTES * count)
            # The first one is cut, the last one may be torn.
            whole = file.read().split(b"\n")[1:-1]
    if len(whole) >= count:
        with contextlib.suppress(ValueError):
            return [json.loads(line) for line in whole[-count:]]
    return read_lines(path)[-count:]


class LineFile:
    """A file of JSON lines that stays open from its first line on: each is there, whole, when it has been added.

    OSError, naming the file, where a line cannot be written, or would be to a file that is no longer in its place.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: FileIO | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Add one line in one write. A value that is not finite becomes null: JSON has no other word for it."""
        if self._file is None:
            self._file = FileIO(self.path, "a")
        elif not self._in_place(self._file):
            raise OSError(errno.ENOENT, "moved or deleted while it was written to", str(self.path))
        line = json_line(record).encode()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        if written != len(line):
            # A full disk takes what fits; the torn line is dropped by the next start.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def sync(self) -> None:
        """What was added is on the disk when this returns."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _in_place(self, file: FileIO) -> bool:
        """Whether the path still leads to the open file: else training would go on for hours, to nobody's use."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Nothing more is added."""
        if self._file is not None:
            self._file.close()


def cut_after(path: Path, step: int) -> int:
    """Move the lines of steps behind ``step`` to NAME.discarded.jsonl; returns how many there were."""
    return cut_lines(path, lambda record: record["step"] > step)


def cut_lines(path: Path, goes: Callable[[dict[str, Any]], bool]) -> int:
    """Move the lines that ``goes`` says so of to NAME.discarded.jsonl; returns how many there were."""
    if not path.exists():
        return 0
    kept, gone = [], []
    for record in read_lines(path):
        (gone if goes(record) else kept).append(record)
    if gone:
        with path.with_suffix(".discarded.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(map(json_line, gone))
    # Also without lines to discard: the rewrite drops a torn last line.
    write_atomic(path, "".join(map(json_line, kept)))
    return len(gone)


def step_record(step: Step, mfu: float | None, memory: int | None = None) -> dict[str, Any]:
    """A step's line in metrics.jsonl; the router's loss and the teacher's only where they are trained on, ``memory``
    (bytes) only where it is known."""
    record = asdict(step)
    reason = record.pop("skipped")
    for name in ("auxiliary_loss", "divergence", "disagreement", "slowest"):
        if record[name] is None:
            del record[name]
    last = {name: record.pop(name) for name in ("seconds", "data_wait", "slowest") if name in record}
    skipped = {} if reason is None else {"skipped": True, "reason": reason}
    held = {} if memory is None else {"memory": memory}
    return {**record, "mfu": mfu, **held, **last, **skipped}


def step_line(step: Step, steps: int, recent: Iterable[dict[str, Any]]) -> str:
    """A step in words, of ``steps``, with the time that is left at the pace of the ``recent`` lines."""
    router = "" if step.auxiliary_loss is None else f"router's auxiliary loss {step.auxiliary_loss:.4f}, "
    teacher = "" if step.divergence is None else f"divergence from the teacher {step.divergence:.4f}, "
    left = timedelta(seconds=round((steps - step.step) * pace(recent)[1]))
    speed = f"{step.tokens_per_second:,.0f} tokens/s, {left} left"
    if step.skipped is not None:
        return f"step {step.step} of {steps}: skipped, for {step.skipped} (see bad_steps.jsonl), {speed}"
    return (
        f"step {step.step} of {steps}: loss {step.loss:.4f}, {teacher}{router}gradient norm {step.grad_norm:.2f}, rate "
        f"{step.learning_rate:.2e}, {speed}"
    )


def pace(lines: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """Tokens a second, and seconds of a step, by the last of metrics.jsonl's ``lines``. Both hold what is done between
    steps (evaluations, checkpoints, exports), so that they tell how long a run still takes."""
    recent = list(lines)[-WINDOW:]
    # Runs of earlier versions, which status still reads, have what is between the steps in a field of its own.
    seconds = sum(line.get("interval", line["seconds"]) for line in recent)
    tokens = sum(line["tokens_per_second"] * line["seconds"] for line in recent)
    return tokens / seconds, seconds / len(recent)


def json_line(record: dict[str, Any]) -> str:
    """A record as a line of a line file."""
    return json.dumps(_plain(record), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """The same with None for numbers that are not finite, however deep they lie."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
