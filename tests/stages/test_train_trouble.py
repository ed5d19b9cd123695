"""Training that meets one trouble after the other: no space, another layout, a corrupt checkpoint."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.phases import phase

KEPT = ["step-00000010", "step-00000020"]


@contextmanager
def small_files() -> Iterator[None]:
    """Programs that are started within cannot write files above 200 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checkpoints(folder: Path) -> list[str]:
    """The complete ones."""
    return sorted(path.parent.name for path in folder.glob("*/COMPLETE"))


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_after_every_trouble_the_advice_leads_to_the_same_bytes(
    regrow, lengthen, copy_until, same_as_reference, tmp_path
):
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    folder = run / "train" / "checkpoints"

    def refused(*overrides: str) -> tuple[str, str]:
        """The one message of a training that must fail, and all that it printed."""
        command = regrow("train", config, *overrides)
        assert command.wait() == 1, command.output
        said = [line for line in command.output.splitlines() if line.startswith("regrow")]
        assert len(said) == 1, f"not one message but: {said}"
        assert command.output.count("regrow: ") == 1 and "Traceback" not in command.output, command.output
        return said[0], command.output

    with phase("killed at step 21 of 24"):
        begun = regrow("train", config)
        begun.read_until("[train] step 21 of 24")
        begun.kill()
        begun.wait()
        assert checkpoints(folder) == KEPT

    with phase("the last checkpoint cannot be written, and nothing earlier is lost"):
        with small_files():
            said, output = refused()
        assert "[train] resuming at step 20 of 24" in output
        assert "step-00000024: could not be written" in said, said
        assert "the disk is full, or a quota or a limit on the size of files was met" in said, said
        assert checkpoints(folder) == KEPT, "an earlier checkpoint is gone"

    with phase("in another layout it goes on, and says so"):
        command = regrow("train", config, "train.processes=1", "train.micro_batch=4", "train.zero_stage=2")
        command.read_until("[train] step 21 of 24")
        command.kill()
        command.wait()
        changed = "(processes was 2, is 1; micro_batch was 2, is 4; zero_stage was 1, is 2"
        assert f"[train] going on in another layout {changed}" in command.output, command.output
        assert checkpoints(folder) == KEPT

    newest = folder / KEPT[1]
    with phase("a corrupt checkpoint is named"):
        file = newest / "rank-00001.safetensors"
        flip(file)
        said, output = refused()
        for part in (f"checkpoint {newest}: {file.name} is damaged", f"the one before it, {KEPT[0]}"):
            assert part in output, f"{part!r} is not in:\n{output}"

    with phase("moved away as advised, training goes on from the one before it"):
        shutil.move(newest, tmp_path / "aside")
        command = regrow("train", config)
        assert command.wait() == 0, command.output
        assert "[train] resuming at step 10 of 24" in command.output
        assert len(list(folder.glob("step-*"))) == 2, "what the failed save left was not cleared"
        same_as_reference(run)
