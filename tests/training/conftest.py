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

CASES = {
    2: [
        *(f"parity-{stage}-{dtype}" for dtype in ("fp32", "bf16") for stage in range(4)),
        *(f"within-{stage}-fp32" for stage in (1, 3)),
        "masked-1-fp32",
        *(f"resume-{stage}-bf16" for stage in range(4)),
        "resume-0-fp32",
        "resume_with_all-1-bf16",
        *(f"export-{stage}-bf16" for stage in (1, 2, 3)),
        "split-1-fp32",
        *(f"recomputed-{stage}-fp32" for stage in (1, 3)),
        "signs-1-fp32",
        "sums-1-bf16",
        "compiled-2-bf16",
        "compiled_within-1-fp32",
        "uncompilable-1-fp32",
        *(f"precise-{stage}-bf16" for stage in range(4)),
        *(f"stopped_gradient-{stage}-{dtype}" for dtype in ("fp32", "bf16") for stage in range(4)),
        *(f"stopped_loss-{stage}-bf16" for stage in range(4)),
        *(f"no_target-{stage}-fp32" for stage in (0, 1, 3)),
        *("skipped_spike-1-bf16", "skipped_gradient-0-bf16"),
        "worn_out-3-bf16",
        *(f"slowed-{stage}-fp32" for stage in (1, 2)),
        *(f"unreached-{stage}-bf16" for stage in range(4)),
        *(f"kept-{stage}-bf16" for stage in range(4)),
        *(f"passed_over-{stage}-fp32" for stage in (0, 1)),
        *(f"routed-{stage}-fp32" for stage in (0, 3)),
        *(f"taught-{stage}-fp32" for stage in (0, 1, 3)),
        "taught-1-bf16",
        "taught_split-3-fp32",
        "taught_within-1-fp32",
        *(f"recalled-{stage}-fp32" for stage in (1, 3)),
        *(f"resume_taught-{stage}-bf16" for stage in (0, 3)),
        *(f"lora_parity-{stage}-fp32" for stage in (0, 1, 3)),
        *(f"lora_resume-{stage}-bf16" for stage in (0, 3)),
        "lora_recomputed-1-fp32",
        *(f"lora_export-{case}" for case in ("1-fp32", "0-bf16", "3-bf16")),
        *(f"written-{stage}-bf16" for stage in range(4)),
        "written_lora-1-bf16",
        "beside-1-bf16",
    ],
    1: [*(f"parity-{stage}-fp32" for stage in range(4)), "taken_up-0-bf16"],
}
#: Those that compile for half a minute, stages between others, and more ways to skip a step.
SLOW = {
    2: [
        *("compiled-0-bf16", "compiled-3-fp32", "taught_compiled-1-fp32", "lora_compiled-1-bf16"),
        *(f"taken_up-{stage}-bf16" for stage in range(4)),
        *(f"skipped_spike-{case}" for case in ("0-bf16", "0-fp32", "1-fp32", "2-bf16", "2-fp32", "3-bf16", "3-fp32")),
        *(
            f"skipped_gradient-{case}"
            for case in ("0-fp32", "1-bf16", "1-fp32", "2-bf16", "2-fp32", "3-bf16", "3-fp32")
        ),
        *(f"skipped_loss-{stage}-bf16" for stage in range(4)),
        *("taught-2-fp32", "taught_split-1-fp32", "lora_parity-2-fp32", "lora_resume-1-bf16", "lora_resume-2-bf16"),
    ],
    1: ["taken_up-1-bf16"],
    4: [*(f"parity-{stage}-fp32" for stage in (1, 2, 3)), "written-1-bf16", "taken_up-2-bf16", "taken_up-3-bf16"],
}
#: How often the program is started anew behind a case that ended it.
STARTS = 4


def _start(processes: int, folder: Path, *cases: str) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, "-m", *launcher, "-m", "tests.training.program", str(folder), *cases]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=400)


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
    """What the cases measured, by their names: a test whose case failed says how, and the others have theirs."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getitem__(self, case: str) -> dict[str, Any]:
        failed = sorted(self.folder.glob(f"{case}.*.failed"))
        if failed:
            pytest.fail("\n".join(f"{path.name}: {path.read_text()}" for path in failed), pytrace=False)
        if not (self.folder / f"{case}.json").exists():
            pytest.fail(f"{case} was not measured: cases before it ended the program {STARTS} times", pytrace=False)
        return json.loads((self.folder / f"{case}.json").read_text())


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``start(processes, folder, *cases)``: the program under torchrun, to its end."""
    return _start


@pytest.fixture(scope="session")
def measured(once: Any) -> Callable[..., Measured]:
    """``measured(processes)``: results by case; started once, when first asked for. ``slow``: those of SLOW."""

    @cache
    def results(processes: int, slow: bool = False) -> Measured:
        cases = SLOW[processes] if slow else CASES[processes]
        # Checkpoints of others are taken up: of two processes and, where it is slow, of four.
        if slow or processes != 2:
            results(2)
        if slow and processes != 4:
            results(4, True)
        return Measured(
            once(f"training-{processes}{'-slow' * slow}", lambda folder: _measure(processes, folder, cases))
        )

    return results
