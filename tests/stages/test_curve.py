"""The lines of judged exports: whole and once each, however many jobs add to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from pipeline.run import Run
from pipeline.stages.curve import add_line, claim, curve_file, forget_behind, lines_of_step
from tests import ROOT

JOB = """
import sys
from pathlib import Path
from pipeline.run import Run
from pipeline.stages.curve import add_line
for step in range(40):
    line = {"step": step if step % 2 else 100 * int(sys.argv[2]) + step, "sha256": "a", "protocol": "p"}
    add_line(Run(Path(sys.argv[1])), {**line, "long": "x" * 3000})
"""


def line(step: int, sha256: str = "a", protocol: str = "p", **more):
    return {"step": step, "sha256": sha256, "protocol": protocol, **more}


def test_jobs_at_once_lose_no_line_and_none_stands_twice(tmp_path):
    """Half of the steps are every job's, half are its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    jobs = [
        subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path), str(number)], env=environment)
        for number in (1, 2, 3)
    ]
    assert [job.wait(timeout=100) for job in jobs] == [0, 0, 0]
    steps = [json.loads(one)["step"] for one in curve_file(Run(tmp_path)).read_text().splitlines()]
    own = [100 * number + step for number in (1, 2, 3) for step in range(0, 40, 2)]
    assert sorted(steps) == sorted([*range(1, 40, 2), *own])


def test_a_line_stands_once_and_another_protocol_has_its_own(tmp_path):
    run = Run(tmp_path)
    assert add_line(run, line(8)) and not add_line(run, line(8, value=2.0))
    assert add_line(run, line(8, protocol="q")) and add_line(run, line(16))
    assert lines_of_step(run, 8) == [line(8), line(8, protocol="q")] and lines_of_step(run, 9) == []


def test_what_other_weights_of_the_step_replace_is_kept_beside(tmp_path):
    run = Run(tmp_path)
    add_line(run, line(8))
    add_line(run, line(8, protocol="q"))
    assert add_line(run, line(8, sha256="b"))
    assert lines_of_step(run, 8) == [line(8, protocol="q"), line(8, sha256="b")]
    discarded = curve_file(run).with_name("curve.discarded.jsonl").read_text().splitlines()
    assert [json.loads(one) for one in discarded] == [line(8)]


def test_an_export_is_held_by_one_job(tmp_path):
    run = Run(tmp_path)
    with claim(run, "step-1") as first, claim(run, "step-1") as second, claim(run, "step-2") as other:
        assert first is None and other is None and second.endswith(f"pid {os.getpid()}")
    with claim(run, "step-1") as again:
        assert again is None


def test_steps_that_are_done_again_are_no_longer_on_it(tmp_path):
    run = Run(tmp_path)
    for step in (8, 16, 24):
        add_line(run, line(step))
    forget_behind(run, 16)
    assert [len(lines_of_step(run, step)) for step in (8, 16, 24)] == [1, 1, 0]
    assert json.loads(curve_file(run).with_name("curve.discarded.jsonl").read_text()) == line(24)
