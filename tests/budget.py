"""What each folder's tests may cost, in CPU seconds, and what they did cost.

CPU seconds are those of the tests and of the processes that they started and waited for. They hardly move with what
else the machine does, as seconds on the clock do; on two cores the suite takes about half of their sum. A table of all
folders ends every run. Under ``--budget=fail``, as CI has it, a folder that costs more than its budget fails the run:
make its tests smaller, let them share what they start, or mark what takes longest ``slow``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from pathlib import PurePosixPath
from typing import Any

import pytest

#: What the whole suite may take, on so many idle cores.
MINUTES, CORES = 12, 2
#: CPU seconds for the tests of a folder (``tests``: the files that lie in no folder): a fifth more than they took when
#: these were set, since a machine that is shared gives some times that are longer.
BUDGETS = {
    "tests": 260,
    "tests/cluster": 0,
    "tests/commands": 30,
    "tests/config": 9,
    "tests/data": 95,
    "tests/evaluation": 85,
    "tests/importance": 70,
    "tests/model": 84,
    "tests/reporting": 18,
    "tests/stages": 440,
    "tests/training": 349,
}
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

    def over(self) -> list[str]:
        """The folders that cost more than they may, or that have no budget."""
        return [folder for folder, cost in self.costs.items() if cost > BUDGETS.get(folder, 0)]

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
        terminalreporter.line(f"{'together':20} {sum(self.costs.values()):6.0f} of {sum(BUDGETS.values()):6.0f}")
