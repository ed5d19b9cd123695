"""Show: the documents that a training step saw, decoded, to look into a spike of the loss.

The rows are read again from the newest checkpoint before the step, or from the start where there is none. They are
the step's rows on any number of processes: their order depends on the config alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import Config
from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import LaneCursor, check_identity, from_json
from pipeline.errors import RegrowError
from pipeline.files import read_json
from pipeline.inputs import Inputs
from pipeline.run import Run
from pipeline.training.checkpoint import complete_checkpoints, step_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shown_step(config: Config, config_path: str, step: int, characters: int) -> Iterator[str]:
    """Lines for people: each row of update number ``step`` (from 1), with at most ``characters`` of each document.

    Raises RegrowError when stage data is not done, when the run has no such step, or when a checkpoint's position is
    of another stream.
    """
    run = Run(config.run_folder)
    run.require("data", config_path)
    batch, length = config.train.global_batch, config.data.row_length
    if not 1 <= step <= config.steps:
        raise RegrowError(f"--step {step}: the steps of this run are 1 to {config.steps}")
    pruned = run.stage("prune") / "model"
    text = Inputs(config, run, pruned if pruned.exists() else None)
    known, cursors = _position_before(text, step)
    first, behind = (text.begin.row + count * batch for count in (step - 1, known))
    yield f"step {step} of {config.steps}: rows {first} to {first + batch - 1} of {length} tokens"
    if first > behind:
        yield f"reading {first - behind} rows from step {known} on, to get there"
    stream = text.stream(step=known, cursors=cursors)
    for row in islice(stream, first - behind, first - behind + batch):
        digest = hashlib.sha256(row.input_ids.tobytes()).hexdigest()[:16]
        count = len(_pieces(row))
        where = stream.place_of(row)
        yield f"\nrow {row.index}, lane {row.lane}, {count} documents, sha256 {digest}; it ends in {where}"
        yield from _documents(row, text.encoder.tokenizer, characters)


def _position_before(text: Inputs, step: int) -> tuple[int, Mapping[int, LaneCursor] | None]:
    """The last update before ``step`` that a checkpoint was taken behind, and the lanes' cursors there."""
    complete = complete_checkpoints(text.run.stage("train") / "checkpoints")
    folders = [folder for folder in complete if step_of(folder) < step]
    if not folders:
        return 0, None
    newest = max(folders, key=step_of)
    state = read_json(newest / "state.json")
    check_identity(state["identity"], text.identity)
    return step_of(newest), from_json(state["lanes"])


def _pieces(row: Row) -> list[tuple[int, int]]:
    """Where the row's documents stand in it; padding is none: not one token of it is a target."""
    pieces = list(pairwise(row.cu_seqlens.tolist()))
    return pieces if row.counted is None else [(begin, end) for begin, end in pieces if row.counted[begin:end].any()]


def _parts(row: Row) -> Iterator[tuple[int, int, str]]:
    """What is shown of the row: a document whole, or of an instruction what is no target, and what is one."""
    for begin, end in _pieces(row):
        if row.counted is None:
            yield begin, end, ""
            continue
        changes = (np.flatnonzero(np.diff(row.counted[begin:end])) + begin + 1).tolist()
        for start, stop in pairwise([begin, *changes, end]):
            yield start, stop, "targets: " if row.counted[start] else "no target: "


def _documents(row: Row, tokenizer: PreTrainedTokenizerBase, characters: int) -> Iterator[str]:
    for begin, end, what in _parts(row):
        text = tokenizer.decode(row.input_ids[begin:end])
        cut = f" ... ({len(text) - characters} characters more)" if characters and len(text) > characters else ""
        shown = (text[:characters] if characters else text).replace("\n", "\n    ")
        yield f"  [{begin}:{end}] {what}{shown}{cut}"
