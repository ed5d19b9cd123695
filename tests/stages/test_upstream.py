"""A stage that is started by itself builds only on what its config says and on files that are still there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run(reference: Path, lengthen, tmp_path: Path) -> Path:
    """A copy of the reference run, with its config beside it."""
    lengthen(tmp_path)
    return shutil.copytree(reference, tmp_path / "runs" / "tiny")


def refused(regrow, run: Path, *arguments: str) -> str:
    before = (run / "config.yaml").read_bytes()
    stage, *rest = arguments
    command = regrow(stage, run.parent.parent / "longer.yaml", *rest)
    assert command.wait() == 1, f"regrow {arguments} was not refused:\n{command.output}"
    assert "Traceback" not in command.output, command.output
    assert (run / "config.yaml").read_bytes() == before, "a refused command changed the run's config.yaml"
    assert not (run / "aside").exists(), "a refused command moved something aside"
    return command.output


def test_a_changed_key_of_an_earlier_stage_is_refused(regrow, run: Path) -> None:
    output = refused(regrow, run, "report", "prune.remove=1")
    assert "stage prune is done, but not with this config" in output and "prune.remove: was 2, is 1" in output, output


def test_other_lanes_would_change_the_order_of_the_samples(regrow, run: Path) -> None:
    output = refused(regrow, run, "train", "data.lanes=24")
    assert "data.lanes: was 12, is 24" in output, output


def test_a_lost_output_is_named(regrow, run: Path) -> None:
    weights = run / "prune" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    output = refused(regrow, run, "evaluate")
    assert "prune/model/model.safetensors" in output and "--redo prune" in output, output


def test_redo_of_a_stage_that_the_command_would_not_carry_out(regrow, run: Path) -> None:
    output = refused(regrow, run, "train", "--redo", "prune")
    assert "--redo prune: this command carries out train only" in output, output
