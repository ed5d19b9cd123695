"""The tests marked ``gpu``, and how many passed.

    python benchmarks/gpu_tests.py

Exit status 1 where one failed, where a file could not be collected, and where a GPU is here and none passed: a test
that was skipped has shown nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from time import perf_counter

import pytest
import torch
from machine import show

ROOT = Path(__file__).parent.parent


class Outcomes:
    """A plugin that counts what became of the tests, and the files that could not be read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(passed=0, failed=0, skipped=0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test counts once: by its call, or by the setup or the teardown that kept it from passing.
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.counts["failed"] += report.failed


def main() -> None:
    """Run them, and print the figures."""
    outcomes, begin = Outcomes(), perf_counter()
    # One file that cannot be imported on this machine does not keep the others from running.
    options = ["-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    status = pytest.main([*options, f"--rootdir={ROOT}", str(ROOT / "tests")], plugins=[outcomes])
    seconds, counts = perf_counter() - begin, outcomes.counts
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    show(
        device,
        {**counts, "seconds": seconds},
        {
            "Passed": f"{counts['passed']}",
            "Failed": f"{counts['failed']}",
            "Skipped": f"{counts['skipped']}",
            "Seconds": f"{seconds:.0f}",
        },
    )
    if status == 0 and device.type == "cuda" and not counts["passed"]:
        sys.exit("no test marked gpu passed on this GPU: see the reasons for skipping above")
    sys.exit(int(status != 0))


if __name__ == "__main__":
    main()
