"""What a person is told of an error that a stage met; where it came from stays in the log."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipeline.config.naming import name_keys
from pipeline.errors import RegrowError, first_line
from pipeline.run import Run
from pipeline.stages.history import note_failure
from pipeline.world import lost_peer


@contextmanager
def told(stage: str, run: Run, rank: int = 0) -> Iterator[None]:
    """Within the context an error becomes what a person should be told; log.txt keeps where it came from."""
    try:
        yield
    except Exception as error:
        told = _message(error, stage, run, rank)
        # What explains itself needs no traceback.
        known = isinstance(error, RegrowError) and error.__cause__ is None
        whole = "" if known else "\n" + "".join(traceback.format_exception(error)).rstrip()
        # The log itself may be what cannot be written.
        with suppress(OSError):
            run.log(f"{stage}: rank {rank}: {told or repr(error)}{whole}")
            note_failure(stage, run, rank, str(told or repr(error)))
        if told is None or told is error:
            raise
        raise told from error


def _message(error: Exception, stage: str, run: Run, rank: int) -> RegrowError | None:
    """What a person should be told of an error, or None where only the traceback says it."""
    import torch

    from pipeline.data.stream.loader import killed_worker

    if isinstance(error, RegrowError):
        name_keys(error)
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return RegrowError(
            f"stage {stage}: rank {rank} ran out of GPU memory ({first_line(error)}); lower the stage's "
            "micro_batch (for tasks evaluate.tasks.batch), or for training raise train.zero_stage or set "
            "train.gradient_checkpointing"
        )
    killed = killed_worker(error, rank)
    if killed is not None:
        return RegrowError(killed)
    gone = lost_peer(error)
    if gone is not None:
        # Its launcher saw that, or will, says so, and ends this one meanwhile.
        time.sleep(5)
        when = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        return RegrowError(f"stage {stage}: rank {rank} lost another rank{when} ({gone}), whose message says why")
    if isinstance(error, OSError):
        # The kernel's own name a file; a library's say in words what it missed.
        named = error.strerror and error.filename
        what = f"{error.strerror}: {error.filename}" if named else first_line(error)
        return RegrowError(
            f"stage {stage}: {what} ({type(error).__name__}; {run.folder / 'log.txt'} says where it came from); what "
            "was finished is kept: once that is mended, start the same command again"
        )
    return None
