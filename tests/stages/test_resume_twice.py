"""A checkpoint that a resumed run wrote is as good as one of a run that was never interrupted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_successive_resumes_end_in_the_same_bytes(
    regrow, reference: Path, lengthen, same_as_reference, tmp_path: Path
) -> None:
    config, run = lengthen(tmp_path), tmp_path / "runs" / "tiny"
    for stage in ("data", "score", "prune"):
        shutil.copytree(reference / stage, run / stage)
    arguments = ("train", config, "train.checkpoint_every=4")
    # The second kill meets a run that was resumed at step 4 and has written the checkpoint of step 8 itself.
    for line in ("[train] step 6 of 24", "[train] step 11 of 24"):
        command = regrow(*arguments)
        command.read_until(line)
        command.kill()
        command.wait()
    last = regrow(*arguments)
    assert last.wait() == 0, last.output
    noise = [line for line in last.output.splitlines() if not re.match(r"\[[a-z]+\] ", line)]
    assert not noise, f"lines that are not regrow's: {noise}"
    # Step 8, or a later one where the kill came late: one that the resumed run wrote.
    assert re.search(r"resuming at step (8|12|16|20) of 24", last.output), last.output
    same_as_reference(run)
