"""What a command does before a stage's first work: it imports once, and its ranks not again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

#: Of each stage that is launched, the line after its start: its first unit of work, or what it reads for it.
FIRST = {"score": "[score] scoring", "train": "[train] step 0", "evaluate": "[evaluate] dense: 8"}
#: CPU seconds that a command and its two ranks may take until then. They take 3.1; each process that imported by itself
#: would add 2.5.
CPU = 5.0
#: Seconds on the clock, on an idle machine.
SECONDS = 4.0


@pytest.fixture
def begin(regrow, lengthen, copy_until, tmp_path) -> Callable[[str], tuple[float, float]]:
    """``begin(stage)``: the CPU seconds and the seconds on the clock from a command's start to its first work."""
    before = {"score": "data", "train": "prune", "evaluate": "train"}

    def measure(stage: str) -> tuple[float, float]:
        config = lengthen(tmp_path)
        name = f"{stage}-{time.monotonic_ns()}"
        copy_until(before[stage], tmp_path, name)
        start = time.monotonic()
        command = regrow(stage, config, f"run.name={name}")
        command.read_until(FIRST[stage])
        seconds = time.monotonic() - start
        family = command.family()
        assert {each.name() for each in family} >= {"regrow-agent", "regrow-rank-0", "regrow-rank-1"}
        spent = sum(sum(each.cpu_times()[:2]) for each in family)
        for each in family:
            each.kill()
        psutil.wait_procs(family[1:])
        command.wait()
        return spent, seconds

    return measure


@pytest.mark.parametrize("stage", FIRST)
def test_the_command_imports_once_for_all_its_processes(begin, stage):
    spent, _ = begin(stage)
    assert spent < CPU, f"{spent:.1f} CPU seconds before the first work of {stage}"


def slowness() -> float:
    """How many seconds a second of computing takes, with what else the machine does: 1 where that is nothing."""
    start, before = time.monotonic(), os.times()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    seconds, after = time.monotonic() - start, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return max(1.0, seconds / spent)


@pytest.mark.slow
@pytest.mark.parametrize("stage", FIRST)
def test_the_first_work_begins_within_seconds(begin, stage):
    """Of three starts the best counts, each by how slow others make the machine at the time."""
    seconds = min(begin(stage)[1] / slowness() for _ in range(3))
    assert seconds <= SECONDS, f"{seconds:.1f} s from the command to the first work of {stage}"
