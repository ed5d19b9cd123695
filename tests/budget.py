"""What each folder's tests cost, in CPU seconds, beside what they did cost when these were set.

CPU seconds are those of the tests and of the processes that they started and waited for. They move less with what else
the machine does than seconds on the clock; on two cores the suite takes about six tenths of their sum. On another
machine all of them are longer: the pace of a run is that of the middle folder, and a folder is over its budget where it
took a third more, and some seconds, than its budget at this pace. A table of all folders ends every run. Under
``--budget=fail``, as CI has it, a folder over its budget fails the run: make its tests smaller, let them share what
they start, or mark what takes longest ``slow``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from pathlib import PurePosixPath
from statistics import median_low
from typing import Any

import pytest

#: What the whole suite may take, on so many cores, and the part of their time that the budgets may add up to: tests
#: wait for processes, and another machine is slower.
MINUTES, CORES, PART = 12, 2, 0.7
#: CPU seconds that the tests of a folder took on two idle cores (``tests``: the files that lie in no folder).
BUDGETS = {
    "tests": 165,
    "tests/cluster": 0,
    "tests/commands": 22,
    "tests/config": 6,
    "tests/data": 94,
    "tests/evaluation": 72,
    "tests/importance": 48,
    "tests/model": 52,
    "tests/reporting": 13,
    "tests/stages": 290,
    "tests/training": 241,
}
#: How far above the pace of its run a folder may lie: a share, and seconds, which small folders need.
ALLOWED, SPARE = 4 / 3, 5.0
#: What is slower than this is not the machine.
SLOWEST = 1.6
SPENT = "cpu_seconds"


def spent() -> float:
    """CPU seconds of this process and of all that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def folder_of(test: str) -> str:
    """The folder whose budget a test's name counts to."""
    parents = PurePosixPath(test.split("::")[0]).parts[:-1]
    return "/".join(parents[:2])


class Meter:
    """A plugin that notes what each phase of a test cost, adds it up by folder where reports meet, and compares."""

    def __init__(self, fail: bool) -> None:
        self.fail = fail
        self.last = spent()
        self.costs: Counter[str] = Counter()

    @property
    def pace(self) -> float:
        """CPU seconds of this machine for one of the budgets': the middle folder's, 1 to SLOWEST; of fewer than half of
        the folders nothing is known."""
        paces = [cost / BUDGETS[folder] for folder, cost in self.costs.items() if BUDGETS.get(folder)]
        return min(max(1.0, median_low(paces)), SLOWEST) if 2 * len(paces) >= len(BUDGETS) else 1.0

    def over(self) -> list[str]:
        """The folders that cost more than they may at this pace, or that have no budget."""
        return [
            folder
            for folder, cost in self.costs.items()
            if cost > (ALLOWED * BUDGETS[folder] * self.pace + SPARE if BUDGETS.get(folder) else 0)
        ]

    def pytest_collection_finish(self) -> None:
        # What importing the tests cost is no test's.
        self.last = spent()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = spent()
        # Properties travel with the report from a worker to the process that prints.
        report.user_properties.append((SPENT, now - self.last))
        self.last = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.costs[folder_of(report.nodeid)] += sum(value for name, value in report.user_properties if name == SPENT)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (
            self.fail
            and not hasattr(session.config, "workerinput")
            and self.over()
            and session.exitstatus == pytest.ExitCode.OK
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("CPU seconds by folder")
        for folder in sorted(self.costs):
            line = f"{folder:20} {self.costs[folder]:6.0f} of {BUDGETS.get(folder, 0):6.0f}"
            terminalreporter.line(line + ("  OVER ITS BUDGET (tests/budget.py)" if folder in self.over() else ""))
        together = f"{'together':20} {sum(self.costs.values()):6.0f} of {sum(BUDGETS.values()):6.0f}"
        terminalreporter.line(f"{together}, at a pace of {self.pace:.2f}")
