"""Where the states of a sweep by block stand while another micro-batch is on the device: in files.

For each micro-batch there is its newest state, what enters the block that is next for it: the dense state first, then
the variants in the order of their blocks. Where the distances are wanted, the dense state in front of every block
before is kept too. Once a micro-batch is through the last block its results take the place of all of these.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import RegrowError
from pipeline.files import read_json, replacing, write_atomic, write_json


class Shelf:
    """The states of all micro-batches in a folder, so that a sweep that was killed goes on from it.

    A micro-batch's states are one file, named after the block that they enter: written beside, made durable, renamed,
    and only then is the file before it deleted, or cut to its dense state. So each micro-batch has one whole newest
    file at any instant. Files are read and written and not mapped: a full disk is then an error with a name and not a
    bus error, and their pages are not counted as memory.

    ``what`` says what is swept; ``rows`` are the sequences of each micro-batch, of ``length`` tokens; ``variants``
    whether the states of variants stand behind the dense one. Raises RegrowError when the folder is of another sweep.
    """

    def __init__(
        self,
        folder: Path,
        what: dict[str, Any],
        rows: list[int],
        length: int,
        blocks: int,
        *,
        variants: bool,
        keep_dense: bool,
    ):
        self.folder, self.rows, self.length, self.blocks = folder, rows, length, blocks
        self.variants, self.keep_dense = variants, keep_dense
        about = folder / "sweep.json"
        if about.exists():
            before = read_json(about)
            differing = sorted(key for key in before.keys() | what.keys() if before.get(key) != what.get(key))
            if differing:
                raise RegrowError(
                    f"{folder}: holds another sweep ({', '.join(differing)} differ); delete it or name another folder"
                )
        else:
            write_json(about, what)
        self._form: dict[str, Any] = read_json(folder / "form.json") if (folder / "form.json").exists() else {}
        self._newest = [self._settle(number) for number in range(len(rows))]

    @property
    def returns(self) -> int | None:
        """How long the tuples are that blocks return: 0 where they return the state alone; None: not known yet."""
        return self._form.get("returns")

    def entering(self, number: int) -> int:
        """The block that this micro-batch enters next; the number of blocks where it is finished."""
        return self._newest[number]

    def note_form(self, returns: int, state: torch.Tensor) -> None:
        """Keep what files do not say of themselves: what blocks return, and the dtype and the width of a state."""
        form = {"returns": returns, "dtype": str(state.dtype).removeprefix("torch."), "width": state.shape[-1]}
        if not self._form:
            write_json(self.folder / "form.json", form)
            self._form = form

    def put(self, number: int, index: int, states: torch.Tensor) -> None:
        """Take what enters block ``index`` in the place of what was there."""
        if states.shape != self._shape(number, index) or states.dtype != self._dtype:
            raise RegrowError(
                f"block {index - 1} returned {tuple(states.shape)} {states.dtype}; the blocks before returned "
                f"{tuple(self._shape(number, index))} {self._dtype}; it cannot be streamed: take score.loop=batch-major"
            )
        with replacing(self._path(number, index)) as beside:
            beside.write_bytes(_raw(states.cpu().contiguous()))
        self._sync()
        self._newest[number] = index
        self._drop(number, index - 1)

    def states(self, number: int, index: int) -> torch.Tensor | None:
        """What enters that block, on the CPU; None at the first one, where the model's embeddings do."""
        return None if index == 0 else self._read(self._path(number, index), self._shape(number, index))

    def dense(self, number: int, index: int) -> torch.Tensor:
        """The dense state (B, T, d) that enters a block behind the first."""
        return self._read(self._path(number, index), (self.rows[number], *self._shape(number, index)[1:]))

    def finish(self, number: int, found: dict[str, Any]) -> None:
        """Take the results of a micro-batch (JSON), and let its states go."""
        write_atomic(self._result_path(number), json.dumps(found))
        self._newest[number] = self._settle(number)

    def result(self, number: int) -> dict[str, Any]:
        """What ``finish`` took."""
        return read_json(self._result_path(number))

    def bytes(self) -> int:
        """Bytes of the files that stand here."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _settle(self, number: int) -> int:
        """Finish what a kill broke off, and say which block the micro-batch enters next."""
        found = [index for index in range(1, self.blocks) if self._path(number, index).exists()]
        for left in self.folder.glob(".*.new"):
            left.unlink()
        if self._result_path(number).exists():
            for index in found:
                self._path(number, index).unlink()
            return self.blocks
        for index in found[:-1]:
            self._drop(number, index)
        return found[-1] if found else 0

    def _drop(self, number: int, index: int) -> None:
        """Let what entered block ``index`` go, but for the dense state where that is kept."""
        path = self._path(number, index)
        if not self.keep_dense:
            path.unlink(missing_ok=True)
        elif index > 0 and self.variants:
            size = self._size((self.rows[number], *self._shape(number, index)[1:]))
            if path.stat().st_size > size:
                os.truncate(path, size)

    def _path(self, number: int, index: int) -> Path:
        return self.folder / f"{number:06d}-{index:04d}.states"

    def _result_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _shape(self, number: int, index: int) -> tuple[int, int, int]:
        times = 1 + index if self.variants else 1
        return times * self.rows[number], self.length, self._form["width"]

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self._form["dtype"])

    def _size(self, shape: tuple[int, int, int]) -> int:
        return shape[0] * shape[1] * shape[2] * self._dtype.itemsize

    def _read(self, path: Path, shape: tuple[int, int, int]) -> torch.Tensor:
        """The first states of a file; RegrowError where it holds fewer."""
        states = torch.empty(shape, dtype=self._dtype)
        try:
            with path.open("rb") as file:
                read = file.readinto(_raw(states))
        except OSError as error:
            raise RegrowError(f"{path}: cannot be read ({error.strerror})") from None
        if read != self._size(shape):
            raise RegrowError(f"{path}: {read} bytes where {self._size(shape)} are wanted; delete {self.folder}")
        return states

    def _sync(self) -> None:
        """Make a renaming durable before the old file goes."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _raw(states: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU."""
    return states.view(-1).view(torch.uint8).numpy().data
