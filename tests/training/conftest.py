"""One launch of the cases for each number of processes: what they measured, for all tests of training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.training.cases import CASES, SLOW

#: How often the program is started anew behind a case that ended it.
STARTS = 4


def _start(processes: int, folder: Path, *cases: str) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, "-m", *launcher, "-m", "tests.training.program", str(folder), *cases]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=900)


def _measure(processes: int, folder: Path, cases: list[str]) -> None:
    """Start the program on the cases, and anew on those behind one that ended it."""
    left = cases
    for _ in range(STARTS):
        done = _start(processes, folder, *left)
        behind = [case for case in left if len(list(folder.glob(f"{case}.*.ended"))) < processes]
        if not behind:
            return
        (folder / f"{behind[0]}.end.failed").write_text(f"it ended the program ({done.returncode}):\n{done.stderr}")
        left = behind[1:]
        if not left:
            return


class Measured:
    """What the cases measured, by their names: a test whose case failed says how, and the others have theirs.
    ``folder_of`` says where one was measured."""

    def __init__(self, folder_of: Callable[[str], Path]):
        self.folder_of = folder_of

    def __getitem__(self, case: str) -> dict[str, Any]:
        folder = self.folder_of(case)
        failed = sorted(folder.glob(f"{case}.*.failed"))
        if failed:
            pytest.fail("\n".join(f"{path.name}: {path.read_text()}" for path in failed), pytrace=False)
        if not (folder / f"{case}.json").exists():
            pytest.fail(f"{case} was not measured: cases before it ended the program {STARTS} times", pytrace=False)
        return json.loads((folder / f"{case}.json").read_text())


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``start(processes, folder, *cases)``: the program under torchrun, to its end."""
    return _start


@pytest.fixture(scope="session")
def folders(once: Any) -> Callable[[int, bool], Path]:
    """``folders(processes, slow)``: where the cases that are as slow were measured; all of them are started once."""

    @cache
    def measure(processes: int, slow: bool) -> Path:
        # Checkpoints of others are taken up: of two processes and, where it is slow, of four.
        if slow or processes != 2:
            measure(2, False)
        if slow and processes != 4:
            measure(4, True)
        cases = SLOW[processes] if slow else CASES[processes]
        return once(f"training-{processes}{'-slow' * slow}", lambda folder: _measure(processes, folder, cases))

    return measure


@pytest.fixture
def measured(folders: Callable[[int, bool], Path], request: pytest.FixtureRequest) -> Callable[[int], Measured]:
    """``measured(processes)[case]``: what the case measured. A slow one is for slow tests: it starts all of them."""
    may = request.node.get_closest_marker("slow") is not None

    def folder_of(processes: int, case: str) -> Path:
        slow = case in SLOW.get(processes, ())
        assert may or not slow, f"{case} is slow's (tests/training/cases.py), and this test is not marked slow"
        return folders(processes, slow)

    return lambda processes: Measured(lambda case: folder_of(processes, case))
