"""Training that is asked to stop, by any signal, anywhere: one checkpoint, a file that says why, and the same bytes.

Each stop starts the same command, waits for the moment, asks, and looks at what is left. Most are marked slow, to keep
the suite short.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.stopping import AGAIN, STOPPED
from tests.command import Regrow
from tests.phases import phase
from tests.stages.family import Family, left

#: A held-out evaluation that lasts, and readers.
LONG = ["data.workers=1", "train.evaluate_rows=256"]
TASKS = ["evaluate.during.every=16", "evaluate.during.tasks=[sums]", "evaluate.during.limit=64"]
#: What must have the bytes of the undisturbed run.
SAME = ("held_out.jsonl", "tasks.jsonl", "position.json", "exports/step-00000024/model.safetensors")


#: Seconds for a line to come, on a machine that does much else.
PATIENCE = 300


@dataclass(frozen=True)
class Ask:
    """A signal, who gets it, and when: at a line of the output, or while a save or an export is written."""

    number: signal.Signals
    receiver: str
    moment: str
    more: tuple[str, ...] = ()


SOME = [
    Ask(signal.SIGTERM, "command", "[train] started"),
    Ask(signal.SIGUSR1, "reader", "[train] step 3 of 24"),
    Ask(signal.SIGINT, "rank 1", "[train] step 8 of 24"),
]
OTHERS = [
    Ask(signal.SIGINT, "command", "[train] started"),
    Ask(signal.SIGHUP, "command", "[train] step 1 of 24"),
    Ask(signal.SIGUSR1, "agent", "[train] step 3 of 24"),
    Ask(signal.SIGTERM, "all", "[train] step 5 of 24"),
    Ask(signal.SIGTERM, "rank 0", "[train] step 8 of 24"),
    Ask(signal.SIGINT, "agent", "save", ("train.checkpoint_every=1",)),
    Ask(signal.SIGTERM, "command", "export", ("train.export_every=1",)),
    Ask(signal.SIGUSR1, "rank 1", "[train] step 16: held-out"),
]


def train(regrow: Callable[..., Regrow], config: Path, *more: str) -> Regrow:
    return regrow("train", config, *LONG, *TASKS, *more)


@pytest.fixture(scope="session")
def undisturbed(lengthen, once, reference) -> Path:
    """The folder train of the run that nothing disturbed. Not to be changed."""

    def make(folder: Path) -> None:
        config = lengthen(folder)
        for stage in ("data", "score", "prune"):
            shutil.copytree(reference / stage, folder / "runs" / "tiny" / stage)
        shutil.copy(reference / "hashes.json", folder / "runs" / "tiny")
        command = train(Regrow, config)
        assert command.wait() == 0, command.output

    return once("undisturbed", make) / "runs" / "tiny" / "train"


def catch(command: Regrow, folder: Path, moment: str) -> None:
    """Wait until the ranks are in a save or an export, and halt them there."""

    def under_way() -> bool:
        if moment == "export":
            return any((folder / "exports").glob(".step-*.new"))
        saves = sorted((folder / "checkpoints").glob("step-*"))
        return bool(saves) and not (saves[-1] / "COMPLETE").exists()

    command.read_until("[train] step ", PATIENCE)
    ranks = [process for process in command.family() if process.name().startswith("regrow-rank")]
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and command.process.poll() is None:
        if under_way():
            for rank in ranks:
                rank.suspend()
            if under_way():
                return
            for rank in ranks:
                rank.resume()
        time.sleep(0.001)
    raise AssertionError(f"no {moment} was met")


def receivers(family: Family, who: str) -> Sequence[psutil.Process]:
    if who == "command":
        return family.processes[:1]
    if who == "all":
        return family.processes
    ranks = family.named("regrow-rank-1")
    if who == "reader":
        return ranks[0].children()[:1]
    return family.named("regrow-agent") if who == "agent" else family.named(f"regrow-{who.replace(' ', '-')}")


def stop_and_look(command: Regrow, run: Path, ask: Ask) -> None:
    """Ask at its moment: the command says so and ends with its status, and nothing of it is left."""
    folder = run / "train"
    halted = ask.moment in ("save", "export")
    if halted:
        catch(command, folder, ask.moment)
    else:
        command.read_until(ask.moment, PATIENCE)
    family = Family(command)
    chosen = receivers(family, ask.receiver)
    assert chosen, f"no {ask.receiver} among {family.processes}"
    family.kill(list(chosen), ask.number)
    for process in family.processes if halted else ():
        process.send_signal(signal.SIGCONT)
    status = command.wait()
    assert status == STOPPED, f"exit status {status}:\n{command.output}"
    assert command.output.count("stopped ") == 1 and "the same command goes on" in command.output, command.output
    assert "Traceback" not in command.output, command.output
    assert not left(family, run.parent.parent), "something outlived the stop"
    assert not (folder / "stage.json").exists() and not (folder / "DONE").exists()
    look_at(folder, ask)


def look_at(folder: Path, ask: Ask) -> None:
    """What was left behind: one checkpoint, where the lines of metrics.jsonl end, and the reason."""
    told = json.loads((folder / "REQUEUE").read_text())
    steps = sorted(int(path.parent.name.removeprefix("step-")) for path in folder.glob("checkpoints/*/COMPLETE"))
    metrics, held_out = (
        [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []
        for path in (folder / "metrics.jsonl", folder / "held_out.jsonl")
    )
    assert told["step"] == (steps[-1] if steps else 0) == (metrics[-1] if metrics else 0), f"{told}, {steps}, {metrics}"
    # A command hands SIGHUP on as SIGTERM.
    name = "SIGTERM" if ask.number == signal.SIGHUP else ask.number.name
    assert told["why"].startswith(name), told
    if ask.receiver in ("rank 0", "rank 1"):
        assert told["why"] == f"{name} on {ask.receiver}", told
    if ask.receiver == "reader":
        assert told["why"] == f"{name} to a reader on rank 1", told
    if ask.moment == "save":
        assert told["save_seconds"] is None, "a second checkpoint was written"
    if "of 24" in ask.moment:
        assert 0 < told["save_seconds"] < 60
        asked_at = int(ask.moment.split()[2])
        assert asked_at <= told["step"] <= asked_at + 2, f"asked at {asked_at}: {told}"
        if asked_at == 8:
            assert told["step"] == 8 and 8 not in held_out, "the evaluation of step 8 was not given up"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("asks", [SOME, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["some", "others"])
def test_training_that_is_asked_to_stop_anywhere_ends_in_the_same_bytes(
    regrow, lengthen, copy_until, undisturbed, tmp_path, asks
):
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    for number, ask in enumerate(asks):
        with phase(f"stop {number + 1} of {len(asks)}: {ask}"):
            stop_and_look(train(regrow, config, *ask.more), run, ask)
    with phase("to the end"):
        folder = run / "train"
        # Of a step behind the checkpoint: it will be done again, in another layout perhaps.
        ahead = folder / "exports" / "step-00000020"
        ahead.mkdir(parents=True)
        command = train(regrow, config)
        assert command.wait() == 0, command.output
        assert not ahead.exists(), "what was exported of steps that are done again stayed"
        assert (folder / "DONE").exists() and not (folder / "REQUEUE").exists()
        assert not (folder / "metrics.discarded.jsonl").exists(), "steps were done twice"
    with phase("the same bytes"):
        for name in SAME:
            assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), f"{name} is another"
        ours, theirs = (
            [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
            for each in (folder, undisturbed)
        )
        timeless = ("step", "tokens", "loss", "grad_norm", "learning_rate")
        assert [[line[name] for name in timeless] for line in ours] == [
            [line[name] for name in timeless] for line in theirs
        ]


@pytest.mark.slow
def test_a_second_signal_ends_at_once_where_a_rank_waits_in_a_collective(regrow, lengthen, copy_until, tmp_path):
    """Rank 1 is halted: rank 0 waits for it inside a sum, and no step ends any more."""
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    for receiver, ended in (("rank 0", 1), ("command", 130)):
        with phase(receiver):
            command = train(regrow, config)
            command.read_until("[train] step 3 of 24", PATIENCE)
            family = Family(command)
            family.named("regrow-rank-1")[0].suspend()
            chosen = list(receivers(family, receiver))
            for number in (signal.SIGTERM, signal.SIGINT):
                time.sleep(1)
                family.kill(chosen, number)
                # Some more at once are the same request.
                family.kill(chosen, number)
                assert command.process.poll() is None, "the first signal ended it"
                if number == signal.SIGTERM:
                    time.sleep(AGAIN)
            begin = time.monotonic()
            assert command.wait() == ended, command.output
            assert time.monotonic() - begin < 30
            assert not left(family, tmp_path), "something outlived the second signal"
            assert not (run / "train" / "REQUEUE").exists()
            if receiver == "rank 0":
                assert "ended with exit status 130" in command.output, command.output


@pytest.mark.slow
@pytest.mark.parametrize("how", ["max_hours", "file"])
def test_the_clock_and_a_file_stop_it_too(regrow, lengthen, copy_until, tmp_path, how):
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    command = train(regrow, config, "data.workers=0", *(["train.max_hours=1e-6"] if how == "max_hours" else []))
    if how == "file":
        command.read_until("[train] step 1 of 24", PATIENCE)
        (run / "train" / "STOP").write_text("SIGUSR1\n")
    assert command.wait() == STOPPED, command.output
    told = json.loads((run / "train" / "REQUEUE").read_text())
    assert told["why"] == {"max_hours": "train.max_hours on rank 0", "file": "STOP: SIGUSR1 on rank 0"}[how]
    assert not (run / "train" / "STOP").exists()
    assert (told["step"] > 0) == (how == "file"), told
