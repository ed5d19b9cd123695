"""One run that is killed again and again, at every stage and in every way, and ends as if nothing had happened.

Each kill starts the same command, waits for a line that shows where it is, kills, and looks that nothing is left. Most
of the kills are a chain marked slow, to keep the suite short: all those in stages data and report among them.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.run import Run
from pipeline.stages.history import failed_since_start
from pipeline.stopping import STOPPED
from tests.command import Regrow
from tests.phases import phase
from tests.stages.family import PATIENCE, Family, left

HERE = {
    "data": "[data] shard 1",
    "score": "[score] sequence 4 of",
    "prune": "[prune] removing",
    "train": "[train] step 12 of 24",
    "evaluate": "[evaluate] dense: 8 rows",
    "report": "[report] started",
}
#: What else must have the bytes of the uninterrupted run.
SAME = ("score/scores.json", "score/calibration.json", "prune/prune.json", "prune/model/model.safetensors")
#: The kills of a chain, in the order of the stages: (stage, what is killed).
SOME = [
    ("score", "rank 1"),
    ("prune", "command"),
    ("train", "agent"),
    ("train", "rank 1"),
    ("train", "all"),
    # The last one in training: it saves, and the next start goes on behind the line that the others are met at.
    ("train", "ctrl-c"),
    ("evaluate", "rank 0"),
]
OTHERS = [
    ("data", "command"),
    ("data", "ctrl-c"),
    ("score", "command"),
    ("prune", "ctrl-c"),
    ("train", "command"),
    ("train", "rank 0"),
    ("evaluate", "command"),
    ("report", "command"),
    ("report", "ctrl-c"),
]


@pytest.fixture
def start(regrow, lengthen, tmp_path) -> Callable[[], Regrow]:
    """``start()``: the command on the run that is killed, in tmp_path."""
    config = lengthen(tmp_path)
    return lambda: regrow("run", config)


def kill(what: str, family: Family) -> psutil.Process | None:
    """Kill the command, its agent, a rank or all; the rank that was killed."""
    victim = None
    if what == "ctrl-c":
        os.killpg(family.command.process.pid, signal.SIGINT)
    elif what == "agent":
        family.kill(family.named("regrow-agent"))
    elif what.startswith("rank"):
        found = family.named(f"regrow-{what.replace(' ', '-')}")
        assert len(found) == 1, f"no {what} among {family.processes}"
        (victim,) = found
        family.kill(found)
    else:
        family.kill(family.processes if what == "all" else family.processes[:1])
    return victim


def kill_and_look(command: Regrow, folder: Path, stage: str, what: str) -> None:
    """Kill at ``stage``: nothing is left, and who reads the screen is told."""
    command.read_until(HERE[stage])
    family = Family(command)
    if stage in ("score", "train", "evaluate"):
        assert len(family.processes) == 4, f"command, agent and two ranks were expected: {family.processes}"
    victim = kill(what, family)
    survivors = left(family, folder)
    assert not survivors, f"{PATIENCE} s after the kill there still run: {survivors}"
    status = command.wait()
    record = folder / "runs" / "tiny" / stage / "stage.json"
    assert not record.exists(), f"the kill came too late: {stage} was done"
    if (stage, what) == ("train", "ctrl-c"):
        assert status == STOPPED, f"exit status {status} after Ctrl-C"
        assert "by SIGINT; checkpoint written; the same command goes on" in command.output
    elif what == "ctrl-c":
        assert status == 130, f"exit status {status} after Ctrl-C"
        assert "interrupted; the same command goes on from here" in command.output
    elif what in ("command", "all"):
        assert status == -signal.SIGKILL
    else:
        assert status == 1, f"exit status {status} after a kill of {what}"
        assert f"stage {stage} did not finish" in command.output, command.output
        assert "Traceback" not in command.output, command.output
        assert failed_since_start(stage, Run(folder / "runs" / "tiny")), "status cannot tell that it failed"
    if victim:
        assert f"regrow: {what} of 2 (pid {victim.pid}) ended with signal 9" in command.output, command.output


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [SOME, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["some", "others"])
def test_a_run_killed_at_every_stage_ends_as_the_one_that_nothing_interrupted(
    start, reference, same_as_reference, tmp_path, kills
):
    for number, (stage, what) in enumerate(kills):
        with phase(f"kill {number + 1} of {len(kills)}: {what} in {stage}"):
            kill_and_look(start(), tmp_path, stage, what)
    with phase("to the end"):
        command = start()
        assert command.wait() == 0, command.output
    run = tmp_path / "runs" / "tiny"
    with phase("the same bytes"):
        same_as_reference(run)
        for file in (
            "score/scores.json",
            "score/calibration.json",
            "prune/prune.json",
            "prune/model/model.safetensors",
        ):
            assert (run / file).read_bytes() == (reference / file).read_bytes(), f"{file} is another after the kills"
        results = [json.loads((folder / "evaluate" / "results.json").read_text()) for folder in (run, reference)]
        perplexities = [[model["perplexity"] for model in result["models"].values()] for result in results]
        assert perplexities[0] == perplexities[1], "perplexities are others after the kills"
        assert (run / "report" / "index.html").stat().st_size > 10_000
        assert not (run / "aside").exists(), "something was moved aside"
    with phase("what the kills cost"):
        lines = (run / "train" / "metrics.discarded.jsonl").read_text().splitlines()
        numbers = [json.loads(line)["step"] for line in lines]
        # Each kill was at step 12 or a little later, behind the checkpoint of step 10.
        in_training = sum(stage == "train" and what != "ctrl-c" for stage, what in kills)
        assert set(numbers) <= set(range(11, 20)), f"steps before the checkpoint were discarded: {numbers}"
        counts = (numbers.count(11), numbers.count(12))
        assert counts == (in_training, in_training), f"not every discarded line was kept: {numbers}"
