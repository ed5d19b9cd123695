"""A process that hangs: what it leaves, and that it ends; in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

#: The watchdog's limits are 1 s in a step and 3 s elsewhere.
PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from pipeline.training import watchdog
from pipeline.training.garbage import collected_between_steps

watchdog.STARVED = 1
with watchdog.Watchdog(Path(sys.argv[1]), 1, seconds=1, long=3) as watched:
    {body}
print("done")
"""
BODIES = {
    "nothing was begun": "time.sleep(1.5)",
    "the first step takes long": "watched.beat('step 1'); time.sleep(1.5)",
    "much is done between steps": "watched.beat('step 1'); watched.between_steps('step 1'); time.sleep(1.5)",
    "it goes on": "watched.between_steps('step 1'); [(watched.beat('step 2'), time.sleep(0.2)) for _ in range(8)]",
    "it hangs in a step": "watched.between_steps('step 1'); watched.beat('step 2: computing'); time.sleep(60)",
    "it hangs between steps": "watched.between_steps('what is done behind step 1'); time.sleep(60)",
    "no thread gets its turn": (
        "watched.between_steps('step 1'); watched.beat('step 2'); time.sleep(0.6); ctypes.PyDLL(None).sleep(60)"
    ),
}


def start(folder: Path, body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("case", list(BODIES)[:4])
def test_what_takes_its_time_is_left_alone(tmp_path, case):
    process = start(tmp_path, BODIES[case])
    assert process.communicate(timeout=50) == ("done\n", "")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [], "a file without stacks is left"


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("it hangs in a step", "no progress for 1 s (train.hang_seconds) at: step 2: computing;"),
        ("it hangs between steps", "no progress for 3 s (train.hang_seconds) at: what is done behind step 1;"),
    ],
)
def test_a_hang_ends_with_one_line_and_the_stacks(tmp_path, case, what):
    process = start(tmp_path, BODIES[case])
    out, said = process.communicate(timeout=50)
    assert process.returncode == 1
    assert out == ""
    assert said.startswith(f"regrow (rank 1): {what}")
    assert len(said.splitlines()) == 1
    stacks = tmp_path / "stacks" / "rank-1.txt"
    assert str(stacks) in said
    assert '"<string>", line 9 in <module>' in stacks.read_text()


def test_a_process_in_which_python_stands_still_ends_too(tmp_path):
    """A call in C that keeps Python's lock: no thread can look, nor say anything."""
    process = start(tmp_path, BODIES["no thread gets its turn"])
    process.communicate(timeout=50)
    assert process.returncode == 1
    assert "Timeout" in (tmp_path / "stacks" / "rank-1.txt").read_text()


def test_a_signal_has_stacks_left_and_the_process_go_on(tmp_path):
    process = start(tmp_path, "print('begun', flush=True); time.sleep(1)")
    process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    out, said = process.communicate(timeout=50)
    assert (process.returncode, out, said) == (0, "done\n", "")
    assert '"<string>", line 9 in <module>' in (tmp_path / "stacks" / "rank-1.txt").read_text()
