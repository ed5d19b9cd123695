"""One launch of parity.py for each number of processes: what its cases measured, for all tests of training."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

CASES = {
    2: [
        *(f"parity-{stage}-{dtype}" for dtype in ("fp32", "bf16") for stage in range(4)),
        *(f"within-{stage}-fp32" for stage in (1, 3)),
        *(f"resume-{stage}-bf16" for stage in range(4)),
        "resume-0-fp32",
        *(f"export-{stage}" for stage in (1, 2, 3)),
        "split",
        "recomputed",
        "signs",
        *(f"precise-{stage}-bf16" for stage in range(4)),
        *(f"stopped_gradient-{stage}-{dtype}" for dtype in ("fp32", "bf16") for stage in range(4)),
        *(f"stopped_loss-{stage}-bf16" for stage in range(4)),
        *(f"unreached-{stage}-bf16" for stage in range(4)),
        *(f"kept-{stage}-bf16" for stage in range(4)),
        *(f"passed_over-{stage}-fp32" for stage in (0, 1)),
        *(f"routed-{stage}-fp32" for stage in (0, 3)),
    ],
    4: [f"parity-{stage}-fp32" for stage in (1, 2, 3)],
}


def _start(processes: int, folder: Path, *cases: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "-m",
            "tests.training.parity",
            str(folder),
            *cases,
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=400,
    )


def _measure(processes: int, folder: Path) -> None:
    done = _start(processes, folder, *CASES[processes])
    assert done.returncode == 0, f"parity.py with {processes} processes ended with {done.returncode}:\n{done.stderr}"


@pytest.fixture(scope="session")
def start() -> Any:
    """``start(processes, folder, *cases)``: parity.py under torchrun, to its end."""
    return _start


class Measured(dict[str, Any]):
    """Results by case; asking for one that failed fails the test that asks, and no other."""

    def __getitem__(self, case: str) -> Any:
        found = super().__getitem__(case)
        if isinstance(found, dict) and "failed" in found:
            pytest.fail(f"case {case} failed:\n{found['failed']}", pytrace=False)
        return found


@pytest.fixture(scope="session")
def measured(once: Any) -> Any:
    """``measured(processes)``: results by case; started once, when first asked for."""

    @cache
    def results(processes: int) -> dict[str, Any]:
        folder = once(f"parity-{processes}", lambda folder: _measure(processes, folder))
        return Measured({case: json.loads((folder / f"{case}.json").read_text()) for case in CASES[processes]})

    return results
