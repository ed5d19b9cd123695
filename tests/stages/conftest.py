"""Starting points and yardsticks for the tests of stages: copies of the reference run, and what it ended in."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import STAGES

#: The longer config's training.
STEPS = 24
COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")


def _export(run: Path) -> dict[str, str]:
    folder = run / "train" / "exports" / f"step-{STEPS:08d}"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def _lines(path: Path) -> list[list[Any]]:
    return [[json.loads(line)[name] for name in COLUMNS] for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def same_as_reference(reference: Path) -> Callable[[Path], None]:
    """``same_as_reference(run)``: the run's export has the reference's bytes, and its metrics each step once."""

    def check(run: Path) -> None:
        assert _export(reference), "the reference has no safetensors"
        assert _export(run) == _export(reference), f"{run}: the export's bytes are not the uninterrupted run's"
        metrics = _lines(run / "train" / "metrics.jsonl")
        assert [line[0] for line in metrics] == list(range(1, STEPS + 1)), "metrics.jsonl does not hold each step once"
        assert metrics == _lines(reference / "train" / "metrics.jsonl"), "losses, norms or rates are others"
        held_out = "train/held_out.jsonl"
        assert (run / held_out).read_text() == (reference / held_out).read_text(), "held-out losses are others"

    return check


@pytest.fixture(scope="session")
def copy_until(reference: Path) -> Callable[..., Path]:
    """``copy_until(stage, folder, name)``: a copy of the reference run in folder/runs that is done up to ``stage``."""

    def copy(stage: str, folder: Path, name: str = "tiny") -> Path:
        run = folder / "runs" / name
        kept = STAGES[: STAGES.index(stage) + 1]
        run.mkdir(parents=True)
        for done in kept:
            shutil.copytree(reference / done, run / done)
        shutil.copy(reference / "hashes.json", run)
        return run

    return copy


@pytest.fixture
def config_of(tiny_config: Path) -> Callable[..., Path]:
    """``config_of(sources, **keys)``: the tiny config with these sources and other keys of its data section."""

    def make(sources: list[dict[str, Any] | Path], **keys: Any) -> Path:
        listed = [{"path": str(source)} if isinstance(source, Path) else source for source in sources]
        held_out = {key: {"path": str(value)} if key == "held_out" and value else value for key, value in keys.items()}
        path = tiny_config.with_name("data.yaml")
        path.write_text(
            yaml.safe_dump({"extends": "tiny.yaml", "data": {"sources": listed, "held_out": None, **held_out}})
        )
        return path

    return make


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``here(*arguments)``: the command's own entry point in this process; its exit status, output and messages."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from pipeline.cli import main

        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.setenv(name, "1")  # put back after the test: the command sets them
        monkeypatch.setattr(sys, "argv", ["regrow", *map(str, arguments)])
        capsys.readouterr()
        status = main()
        printed = capsys.readouterr()
        return status or 0, printed.out, printed.err

    return call


@pytest.fixture
def refused(here: Any) -> Any:
    """``refused(*arguments)``: the one message of a command that must fail with exit status 1."""

    def call(*arguments: object) -> str:
        status, _, message = here(*arguments)
        assert status == 1, f"exit status {status} of {arguments}; printed:\n{message}"
        assert message.count("regrow: ") == 1, f"not one message but:\n{message}"
        assert "Traceback" not in message, message
        return message

    return call
