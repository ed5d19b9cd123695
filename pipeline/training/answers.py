"""Answers: what a teacher said of training rows, in files that several runs read.

A file, lane-00007/00000003.safetensors, holds the answers on 16 rows of one lane that follow each other, and the lane's
cursor behind them. A lane belongs to one process however many there are, so that each file is written by one alone, and
whoever asks goes on from the cursors of the files before. A file appears whole or not at all; it has the sha256 of what
it holds, and that of each row's ids: an answer is never taken for one on another row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import LaneCursor, from_json, to_json
from pipeline.errors import RegrowError
from pipeline.files import replacing
from pipeline.model.sampled import Sampled, padded

#: Rows in a file: with 2,048 tokens each and 50 samples, about 2 MB. What a kill costs is one file of each lane.
ROWS = 16
#: Counted up when files of before can no longer be read.
FORMAT = 1
ENDING = ".safetensors"
#: Different ids among N draws are about N to this power at temperature 1: 6 of 12, 16 of 50, 26 of 100 by
#: SmolLM2-135M on encyclopedic text. A stronger teacher is surer, and has fewer.
POWER = 0.72


def bytes_per_token(samples: int, vocabulary: int, temperature: float) -> float:
    """Bytes that a token's answer takes, estimated; above temperature 1 the most that it can."""
    different = samples**POWER if temperature <= 1 else samples
    return different * (_dtype(vocabulary).itemsize + 1) + 3


def _dtype(vocabulary: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


@dataclass(frozen=True)
class RowAnswer:
    """The answer on a row of T tokens, whose ids have the sha256 that begins with ``row`` (8,) uint8.

    ``ids`` (m,) and ``counts`` (m,) uint8 hold what was drawn, position behind position; ``different`` (T,) uint8 says
    how much of it is each position's; ``entropies`` (T,) fp16.
    """

    row: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    different: np.ndarray
    entropies: np.ndarray


def hash_row(input_ids: np.ndarray) -> np.ndarray:
    """The first 8 bytes of the sha256 of a row's ids (int64), (8,) uint8."""
    return np.frombuffer(hashlib.sha256(input_ids.tobytes()).digest()[:8], dtype=np.uint8)


class AnswerStore:
    """The answers on rows of ``row_length`` tokens in ``lanes`` lanes, of ``samples`` draws of ``vocabulary`` ids.

    A process that reads holds one file of each of its lanes: those of 384 lanes take 1 GB, over all processes.
    """

    def __init__(self, folder: Path, *, lanes: int, row_length: int, samples: int, vocabulary: int):
        self.folder, self.lanes, self.row_length = folder, lanes, row_length
        self.samples, self.vocabulary = samples, vocabulary
        self._open: dict[int, tuple[int, list[RowAnswer]]] = {}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the ids: uint16 where all fit, else uint32."""
        return _dtype(self.vocabulary)

    @property
    def block(self) -> int:
        """Rows of a block: a file of each lane."""
        return ROWS * self.lanes

    def path(self, lane: int, block: int) -> Path:
        """The file with the answers on a lane's rows of a block."""
        return self.folder / f"lane-{lane:05d}" / f"{block:08d}{ENDING}"

    def rows_in(self, lane: int, block: int, rows: int) -> int:
        """How many of a run's first ``rows`` rows are in a lane's file of a block."""
        first = block * self.block + lane
        return min(ROWS, len(range(first, rows, self.lanes)))

    def missing(self, rows: int) -> list[range]:
        """The blocks with first ``rows`` rows of a run of which answers are missing, those that follow each other
        together. RegrowError names a file that is damaged."""
        found: list[range] = []
        for block in range(-(-rows // self.block)):
            wanted = ((lane, self.rows_in(lane, block, rows)) for lane in range(self.lanes))
            if all(self._held(lane, block) >= count for lane, count in wanted if count):
                continue
            if found and found[-1].stop == block:
                found[-1] = range(found[-1].start, block + 1)
            else:
                found.append(range(block, block + 1))
        return found

    def _held(self, lane: int, block: int) -> int:
        path = self.path(lane, block)
        return int(_about(path)["rows"]) if path.exists() else 0

    def cursors(self, block: int) -> dict[int, LaneCursor]:
        """Each lane's cursor before a block: by the files of the block before; none before the first."""
        found: dict[int, LaneCursor] = {}
        for lane in range(self.lanes) if block else ():
            found |= from_json(_about(self.path(lane, block - 1))["lanes"])
        return found

    def write(self, lane: int, block: int, answers: Sequence[RowAnswer], cursor: LaneCursor) -> None:
        """The file of a lane's rows in a block, behind which the lane stands at ``cursor``. RegrowError where it cannot
        be written."""
        arrays = {
            "rows": np.stack([answer.row for answer in answers]),
            "ids": np.concatenate([answer.ids for answer in answers]).astype(self.dtype),
            "counts": np.concatenate([answer.counts for answer in answers]),
            "different": np.stack([answer.different for answer in answers]),
            "entropies": np.stack([answer.entropies for answer in answers]),
        }
        about = {
            "format": FORMAT,
            "rows": len(answers),
            "lanes": to_json({lane: cursor}),
            "sha256": _hash(arrays),
        }
        with replacing(self.path(lane, block)) as temporary:
            # One entry: the order of several is another each time.
            save_file(arrays, temporary, metadata={"about": json.dumps(about, sort_keys=True)})

    def read(self, row: Row) -> RowAnswer:
        """The answer on a row. RegrowError where there is none, where its file is damaged, and where the row has other
        ids than the one that was asked about."""
        place, lane = divmod(row.index, self.lanes)
        block, place = divmod(place, ROWS)
        path = self.path(lane, block)
        if self._open.get(lane, (-1,))[0] != block:
            self._open[lane] = block, self._load(path)
        answers = self._open[lane][1]
        if place >= len(answers):
            raise RegrowError(f"{path}: no answer on row {row.index:,}; start again, and the teacher is asked for it")
        if not np.array_equal(answers[place].row, hash_row(row.input_ids)):
            raise RegrowError(
                f"{path}: the answer is on another row {row.index:,} than this run reads: a part of the corpus was "
                "left out in one of both; set train.distill.store to another folder"
            )
        return answers[place]

    def _load(self, path: Path) -> list[RowAnswer]:
        if not path.exists():
            raise RegrowError(f"{path}: is not there any more; start again, and the teacher is asked anew")
        about = _about(path)
        arrays = _reading(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        if _hash(arrays) != about["sha256"]:
            raise _damaged(path, "its content is not what was written")
        ends = arrays["different"].sum(axis=1, dtype=np.int64).cumsum()[:-1]
        ids, counts = np.split(arrays["ids"], ends), np.split(arrays["counts"], ends)
        rest = (arrays["different"], arrays["entropies"])
        return [RowAnswer(*each) for each in zip(arrays["rows"], ids, counts, *rest, strict=True)]

    def told(self, rows: Sequence[Row]) -> Sampled:
        """The answers on rows, one behind the other, on the CPU."""
        answers = [self.read(row) for row in rows]
        different = np.concatenate([answer.different for answer in answers])
        ids = np.concatenate([answer.ids for answer in answers]).astype(np.int32)
        counts = np.concatenate([answer.counts for answer in answers])
        tables = (torch.from_numpy(padded(values, different, self.samples)) for values in (ids, counts))
        entropies = torch.from_numpy(np.concatenate([answer.entropies for answer in answers]))
        return Sampled(*tables, entropies, self.samples, self.vocabulary)

    def alike(self, positions: int) -> Sampled:
        """What answers on so many positions look like, on the CPU: the same everywhere."""
        return Sampled.alike(positions, self.samples, self.vocabulary)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.glob(f"lane-*/*{ENDING}"))

    def sweep(self) -> None:
        """Remove what processes that were killed had begun to write."""
        for left in self.folder.glob(f"lane-*/.*{ENDING}.*.new"):
            left.unlink()


def _hash(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode() + arrays[name].tobytes())
    return found.hexdigest()


def _about(path: Path) -> dict[str, Any]:
    """What a file says of itself. RegrowError where it is damaged."""
    about = _reading(path, lambda file: json.loads((file.metadata() or {})["about"]))
    if about.get("format") != FORMAT:
        raise RegrowError(f"{path}: of format {about.get('format')}, this release reads {FORMAT}; take another folder")
    return about


def _reading(path: Path, take: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(path, framework="numpy") as file:
            return take(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from None


def _damaged(path: Path, why: str) -> RegrowError:
    return RegrowError(f"{path}: damaged ({why}); delete it, and the next start asks the teacher about its rows again")
