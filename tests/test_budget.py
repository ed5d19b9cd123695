"""tests/budget.py: what tests cost reaches the table, and a folder that costs too much fails the run, where asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.budget import BUDGETS, CORES, MINUTES, PART, Meter

CONFTEST = """
from tests import budget

budget.BUDGETS, budget.SPARE = {{"tests/dear": 0.3, "tests/cheap": 0.3}}, 0.0

def pytest_configure(config):
    config.pluginmanager.register(budget.Meter(fail={fail}))
"""
#: The work is done by a child, as by the processes that the suite's tests start.
DEAR = """
import subprocess, sys
def test_that_is_dear():
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.6: pass"], check=True)
"""
CHEAP = """
def test_that_is_cheap():
    pass
"""


def suite(folder: Path, fail: bool, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on a project of two folders of tests, one of which overdraws its budget."""
    for name, text in (("dear/test_dear.py", DEAR), ("cheap/test_cheap.py", CHEAP)):
        (folder / "tests" / name).parent.mkdir(parents=True)
        (folder / "tests" / name).write_text(text)
    (folder / "conftest.py").write_text(CONFTEST.format(fail=fail))
    command = [sys.executable, "-m", "pytest", "tests", *options]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True
    )


def test_a_folder_over_its_budget_fails_the_run(tmp_path: Path) -> None:
    """Also where workers report what the tests cost."""
    done = suite(tmp_path, True, "-n", "2")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED and "2 passed" in done.stdout, done.stdout + done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("tests/") and " of " in line}
    assert "OVER ITS BUDGET" in lines["tests/dear"] and "OVER" not in lines["tests/cheap"], done.stdout
    assert int(lines["tests/dear"].split()[1]) >= 1, f"0.6 s of a child's CPU time were to be counted: {lines}"


def test_it_only_says_so_unless_asked_to_fail(tmp_path: Path) -> None:
    done = suite(tmp_path, False)
    assert done.returncode == 0 and "OVER ITS BUDGET" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("dear", "over"), [(1.0, []), (1.3, []), (1.6, ["tests/stages"])])
@pytest.mark.parametrize("machine", [1.0, 1.3, 1.6])
def test_a_slower_machine_overdraws_no_budget_and_a_dearer_folder_does_on_any(machine, dear, over) -> None:
    meter = Meter(fail=True)
    meter.costs.update({folder: budget * machine for folder, budget in BUDGETS.items() if budget})
    meter.costs["tests/stages"] = BUDGETS["tests/stages"] * machine * dear
    assert meter.over() == over


def test_what_has_grown_in_every_folder_or_is_asked_alone_is_measured_by_the_budgets_themselves() -> None:
    all_of_them, one = Meter(fail=True), Meter(fail=True)
    all_of_them.costs.update({folder: 2.5 * budget for folder, budget in BUDGETS.items() if budget})
    one.costs["tests/stages"] = 1.6 * BUDGETS["tests/stages"]
    assert "tests/stages" in all_of_them.over() and one.over() == ["tests/stages"]


def test_what_has_no_budget_is_over_it() -> None:
    meter = Meter(fail=True)
    meter.costs["tests/new"] = 0.1
    assert meter.over() == ["tests/new"]


def test_every_folder_of_tests_has_a_budget() -> None:
    together = sum(BUDGETS.values())
    assert together <= CORES * MINUTES * 60 * PART, "together the budgets would take longer than is promised"
    folders = {"tests", *(f"tests/{path.parent.name}" for path in (ROOT / "tests").glob("*/test_*.py"))}
    assert set(BUDGETS) == folders, f"folders without a budget, or budgets without a folder: {set(BUDGETS) ^ folders}"
