"""One launch of processes.py: what one, two and four processes found, for all tests of importance."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT


@pytest.fixture(scope="session")
def by_processes(once: Callable[..., Path]) -> dict[int, dict[str, Any]]:
    """Number of processes -> what the first of them found."""
    numbers = (1, 2, 4)

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "tests.importance.processes", *map(str, numbers)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        (folder / "found.json").write_text(done.stdout.splitlines()[-1])

    found = json.loads((once("importance", make) / "found.json").read_text())
    return dict(zip(numbers, found, strict=True))
