"""One run that is killed again and again, at every stage and in every way, and ends as if nothing had happened.

The tests share the run and follow each other in the order of the stages: each starts the same command, waits for a
line that shows where it is, kills, and looks that nothing is left. The last one lets it finish. Some of the kills are
marked slow, to keep the suite short; the last test is the same with and without them.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

HERE = {
    "data": "[data] shard 1",
    "score": "[score] sequence 4 of",
    "prune": "[prune] removing",
    "train": "[train] step 12 of 24",
    "evaluate": "[evaluate] dense: held-out",
    "report": "[report] started",
}
SLOW = pytest.mark.slow
KILLS = [
    ("data", "command"),
    pytest.param("data", "ctrl-c", marks=SLOW),
    pytest.param("score", "command", marks=SLOW),
    ("score", "rank 1"),
    ("prune", "command"),
    pytest.param("prune", "ctrl-c", marks=SLOW),
    ("train", "ctrl-c"),
    ("train", "command"),
    ("train", "agent"),
    ("train", "rank 1"),
    ("train", "all"),
    pytest.param("evaluate", "command", marks=SLOW),
    ("evaluate", "rank 0"),
    ("report", "command"),
    pytest.param("report", "ctrl-c", marks=SLOW),
]


@pytest.fixture(scope="module")
def ground(lengthen, tmp_path_factory) -> Path:
    """The folder of the run that is killed; its config is in it."""
    folder = tmp_path_factory.mktemp("killed")
    lengthen(folder)
    return folder


def start(regrow, ground):
    return regrow("run", ground / "longer.yaml")


@pytest.mark.parametrize(("stage", "what"), KILLS)
def test_nothing_is_left_of_a_killed_run(regrow, ground, family, left, stage, what):
    command = start(regrow, ground)
    command.read_until(HERE[stage])
    known = family(command)
    if stage in ("score", "train", "evaluate"):
        assert len(known.processes) == 4, f"command, agent and two ranks were expected: {known.processes}"
    if what == "ctrl-c":
        os.killpg(command.process.pid, signal.SIGINT)
    elif what == "agent":
        known.kill(known.with_words("pipeline.launch"))
    elif what.startswith("rank"):
        rank = what.removeprefix("rank ")
        victim = [process for process in known.ranks() if process.environ()["RANK"] == rank]
        assert len(victim) == 1, f"no rank {rank} among {known.processes}"
        known.kill(victim)
    else:
        known.kill(known.processes if what == "all" else known.processes[:1])

    survivors = left(known, ground)
    assert not survivors, f"20 s after a kill of {what} in {stage} there still run: {survivors}"
    status = command.wait()
    record = ground / "runs" / "tiny" / stage / "stage.json"
    assert not record.exists(), f"the kill came too late: {stage} was done"
    if what == "ctrl-c":
        assert status == 130, f"exit status {status} after Ctrl-C"
        assert "interrupted; the same command goes on from here" in command.output
    elif what in ("command", "all"):
        assert status == -signal.SIGKILL
    else:
        assert status == 1, f"exit status {status} after a kill of {what}"
        assert f"stage {stage} did not finish" in command.output, command.output
        assert "Traceback" not in command.output, command.output
    if what.startswith("rank"):
        assert f"regrow: {what} of 2 (pid {victim[0].pid}) ended with signal 9" in command.output, command.output


def test_the_killed_run_ends_as_the_one_that_nothing_interrupted(regrow, ground, reference, same_as_reference):
    command = start(regrow, ground)
    assert command.wait() == 0, command.output
    run = ground / "runs" / "tiny"
    same_as_reference(run)
    for file in ("score/scores.json", "score/calibration.json", "prune/prune.json", "prune/model/model.safetensors"):
        assert (run / file).read_bytes() == (reference / file).read_bytes(), f"{file} is another after the kills"
    discarded = [json.loads(line) for line in (run / "train" / "metrics.discarded.jsonl").read_text().splitlines()]
    numbers = [line["step"] for line in discarded]
    # Five kills at step 12 or a little later, each behind the checkpoint of step 10.
    assert set(numbers) <= set(range(11, 20)), f"steps before the checkpoint were discarded: {numbers}"
    assert numbers.count(11) == numbers.count(12) == 5, f"not every discarded line was kept: {numbers}"
    results = [json.loads((folder / "evaluate" / "results.json").read_text()) for folder in (run, reference)]
    perplexities = [[model["perplexity"] for model in result["models"].values()] for result in results]
    assert perplexities[0] == perplexities[1], "perplexities are others after the kills"
    assert (run / "report" / "index.html").stat().st_size > 10_000
    assert not (run / "aside").exists(), "something was moved aside"
