"""What every test may use: real text, a small real tokenizer, a small Llama, a tiny config, and the command itself."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests import ROOT
from tests.budget import Meter
from tests.command import Regrow
from tests.tiny import LOGGED, LONGER, tiny_yaml, write_tiny_model

DEMO = ROOT / ".cache" / "demo"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers and the processes that they start have more threads than there are cores. A thread that waits for another
    # at full speed, as OpenMP's do by default, keeps it from its work: a third of the CPU time is enough without. Sums
    # are the same. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget",
        choices=["say", "fail"],
        default="say",
        help="what to do when a folder's tests cost more CPU than tests/budget.py gives them",
    )


#: Folders whose tests start whole runs: they go first, so that the processes that share the tests end together.
FIRST = ("tests/stages", "tests/training")


#: What a slow test may take that says nothing else: the first of those that share a measurement makes it.
SLOW_SECONDS = 2400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The sort keeps the order within each part.
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


def pytest_configure(config: pytest.Config) -> None:
    # Ignored under nohup, and then in all that the tests start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(Meter(config.getoption("budget") == "fail"), "meter")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """``once(name, make)``: the folder ``name`` as ``make(folder)`` left it; of the workers that share the tests, the
    first to ask makes it, and the others wait for it. Not to be changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that models bring along is copied to tmp_path, and forgotten afterwards: transformers keeps it in a package
    of one name, which Python would look for where an earlier test had it."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()
    yield
    forget()


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo's assets: model/ (SmolLM2-135M) and text/ (Wikipedia introductions), fetched when they are missing."""
    from pipeline.demo import fetch_assets

    return fetch_assets(DEMO)


@pytest.fixture(scope="session")
def texts(demo: Path) -> list[str]:
    """Some 1,200 real documents: the first shard of the demo's text."""
    from pipeline.data.formats.documents import read_documents

    shard = demo / "text" / "train" / "chunk1" / "example_train_0.jsonl.zst"
    return [text for _, text in read_documents(shard, "jsonl")]


@pytest.fixture(scope="session")
def tiny_model(texts: list[str], once: Callable[..., Path]) -> Path:
    """A Hugging Face folder: Llama of 8 small blocks, seeded random weights in bf16, a tokenizer of 1,000 tokens."""
    return once("tiny", lambda folder: write_tiny_model(folder / "model", texts)) / "model"


@pytest.fixture(scope="session")
def configure(tiny_model: Path, demo: Path) -> Callable[[Path], Path]:
    """``configure(folder)``: a config of the whole pipeline on the tiny model, in folder; runs go to folder/runs."""

    def write(folder: Path) -> Path:
        path = folder / "tiny.yaml"
        path.write_text(tiny_yaml(tiny_model, demo, folder / "runs"))
        return path

    return write


@pytest.fixture
def tiny_config(configure: Callable[[Path], Path], tmp_path: Path) -> Path:
    """That config in tmp_path: seconds for a run."""
    return configure(tmp_path)


@pytest.fixture(scope="session")
def lengthen(configure: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """``lengthen(folder)``: as ``configure``, with more calibration sequences and 24 training steps."""

    def write(folder: Path) -> Path:
        configure(folder)
        path = folder / "longer.yaml"
        path.write_text(LONGER)
        return path

    return write


@pytest.fixture(scope="session")
def reference(lengthen: Callable[[Path], Path], once: Callable[..., Path]) -> Path:
    """The folder of a run of the longer config that nothing interrupted. Not to be changed."""

    def make(folder: Path) -> None:
        command = Regrow("run", lengthen(folder))
        assert command.wait() == 0, f"the reference run failed:\n{command.output}"
        noise = [line for line in command.output.splitlines() if not re.match(r"\[[a-z]+\] ", line)]
        assert not noise, f"lines that are not regrow's: {noise}"

    return once("reference", make) / "runs" / "tiny"


@pytest.fixture(scope="session")
def logged(lengthen: Callable[[Path], Path], reference: Path, once: Callable[..., Path]) -> Path:
    """The config of a run, in runs/tiny beside it, that trained on from the reference's pruned model with attention
    within documents and logged its samples. Not to be changed."""

    def make(folder: Path) -> None:
        config = lengthen(folder).with_name("logged.yaml")
        config.write_text(LOGGED)
        run = folder / "runs" / "tiny"
        for stage in ("data", "score", "prune"):
            shutil.copytree(reference / stage, run / stage)
        shutil.copy(reference / "hashes.json", run)
        command = Regrow("train", config)
        assert command.wait() == 0, f"the logged run failed:\n{command.output}"

    return once("logged", make) / "logged.yaml"


@pytest.fixture
def regrow() -> Any:
    """``regrow("run", config, ...)`` starts the command; everything that it started is gone after the test."""
    started: list[Regrow] = []

    def start(*arguments: object) -> Regrow:
        started.append(Regrow(*arguments))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            for process in command.family():
                process.kill()
        command.process.stdout.close()
        command.process.wait()
