"""The launching agent: what it says of its ranks, what it leaves when something is killed; all with real processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.agent import UNNOTED, Agent
from pipeline.launch import TOLD
from tests import ROOT

#: A command's part: an agent, forked before anything is computed, that carries out one stage in two processes.
COMMAND = """
import sys
from pipeline.agent import UNNOTED, Agent
agent = Agent(["torch", "numpy", "pipeline.stages.data"])
{first}
agent.warm()
status = agent.launch(sys.argv[1:], 2)
agent.end()
sys.exit(status)
"""


@pytest.fixture
def command() -> Callable[..., subprocess.Popen[str]]:
    """``command(stage, config, first="")``: that part, whose ranks run the stage; it ends with the test."""
    started = []

    def start(*arguments: object, first: str = "", before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        words = [*before, sys.executable, "-c", COMMAND.format(first=first), *map(str, arguments)]
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def waiting(tmp_path: Path) -> Path:
    """A config that whoever reads it waits for: ranks stay at it until they are ended."""
    path = tmp_path / "waiting.yaml"
    os.mkfifo(path)
    return path


def wait_for(what, seconds: float = 60, step: float = 0.02):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(step)
    return None


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def members(process: subprocess.Popen[str]) -> tuple[psutil.Process, list[psutil.Process]]:
    """The agent below a command and its two ranks in their order, as soon as both have taken their names."""

    def all_there():
        by_name = {child.name(): child for child in psutil.Process(process.pid).children(recursive=True)}
        names = ("regrow-agent", "regrow-rank-0", "regrow-rank-1")
        return [by_name[name] for name in names] if by_name.keys() >= set(names) else None

    found = wait_for(all_there)
    assert found, "no agent with two ranks within a minute"
    return found[0], found[1:]


def test_a_stage_that_two_ranks_refuse_is_told_in_one_line(command, tiny_config):
    """Both meet it: there is no manifest yet. Nothing else stands on stderr: no traceback, nothing of the agent's."""
    process = command("score", tiny_config)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == TOLD, errors
    assert re.fullmatch(r"regrow: \S+manifest\.json: cannot be read \(No such file or directory\)\n", errors), errors


def test_the_agent_says_which_rank_was_killed_and_ends_the_others(command, waiting):
    process = command("data", waiting)
    _, ranks = members(process)
    ranks[1].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == f"regrow: rank 1 of 2 (pid {ranks[1].pid}) ended with signal 9\n"
    assert gone(ranks[0].pid), "the other rank is still there"


def test_a_rank_that_fails_of_itself_is_named_below_its_traceback(command):
    """What nothing foresees: here the config cannot be read at all."""
    process = command("data", "any.yaml", first="import pipeline.cli; pipeline.cli._read = lambda *_: 1 / 0")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ZeroDivisionError: division by zero" in errors
    assert re.search(r"^regrow: rank \d of 2 \(pid \d+\) ended with exit status 1$", errors, re.M), errors


@pytest.mark.parametrize("victim", ["command", "agent"])
def test_nothing_outlives_a_kill(command, waiting, victim):
    process = command("data", waiting)
    agent, ranks = members(process)
    (process if victim == "command" else agent).send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if victim == "command" else 1)
    assert wait_for(lambda: all(gone(each.pid) for each in (agent, *ranks)), 15), f"something outlived the {victim}"


def test_ctrl_c_reaches_the_command_alone_which_ends_the_others_first(command, waiting):
    process = command("data", waiting, first="import signal; signal.signal(signal.SIGINT, signal.default_int_handler)")
    agent, ranks = members(process)
    assert os.getsid(agent.pid) == agent.pid != os.getsid(process.pid), "the agent is no session of its own"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors and "regrow: rank" not in errors, errors
    assert all(gone(each.pid) for each in (agent, *ranks)), "the command ended before its ranks"


def test_ranks_meet_signals_as_a_new_program_would(command, waiting):
    """The command's handlers are not theirs; what was ignored at its start, as under nohup, stays ignored."""
    handlers = "import signal; signal.signal(signal.SIGTERM, print); signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = command("data", waiting, first=handlers)
    _, ranks = members(process)
    ranks[0].send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert not gone(ranks[0].pid), "a rank ended by a signal that is ignored"
    ranks[0].terminate()
    _, errors = process.communicate(timeout=30)
    assert errors == f"regrow: rank 0 of 2 (pid {ranks[0].pid}) ended with signal 15\n"


@pytest.mark.parametrize("victim", ["the command", "the agent too"])
def test_a_signal_that_no_rank_notes_is_told_from_a_stop(command, waiting, victim):
    """Sent before a stage has begun, or behind its end: whether anything is left to do the command knows."""
    process = command("train", waiting)
    agent, ranks = members(process)
    if victim == "the agent too":
        agent.kill()
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == UNNOTED, errors
    assert all(gone(each.pid) for each in (agent, *ranks))


def test_ranks_are_new_programs_where_what_was_imported_has_asked_cuda(command, waiting):
    """CUDA works in no fork of a process that has begun with it."""
    process = command("data", waiting, first="import torch; torch.cuda._is_in_bad_fork = lambda: True")
    new = ["-m", "pipeline", "data", str(waiting)]

    def replaced() -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(process.pid).children(recursive=True)
            return [each for each in below if each.cmdline()[1:] == new]
        return []

    assert wait_for(lambda: len(replaced()) == 2), "two new Pythons were expected"
    by_rank = {each.environ()["RANK"]: each for each in replaced()}
    assert by_rank.keys() == {"0", "1"}
    by_rank["1"].kill()
    _, errors = process.communicate(timeout=30)
    assert f"regrow: rank 1 of 2 (pid {by_rank['1'].pid}) ended with signal 9" in errors


def test_a_machine_whose_name_does_not_resolve_starts_its_ranks(command, tiny_config):
    """As in some containers. The name is changed in a namespace of its own, which takes root's rights. The ranks meet:
    what they refuse is said behind that."""
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode:
        pytest.skip("may not make a namespace (unshare --uts): test.sh as root on Linux, not in a closed container")
    program = 'hostname no-such-host.invalid && exec "$@"'
    process = command("score", tiny_config, before=("unshare", "--uts", "bash", "-c", program, "_"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == TOLD and "manifest.json: cannot be read" in errors, errors


def test_where_torch_was_imported_before_the_agent_is_a_python_of_its_own_for_all_stages(capfd):
    """This process has computed: a fork of it might wait for ever. One agent carries out both."""
    before = set(psutil.Process().children())
    agent = Agent(["torch"])
    agent.warm()
    assert not set(psutil.Process().children()) - before, "the agent was started before a stage was"
    assert agent.launch(["train", "--help"], 2) == 0
    (first,) = set(psutil.Process().children()) - before
    assert first.name() == "regrow-agent" and "pipeline.agent" in first.cmdline()
    assert agent.launch(["no-such-stage"], 1) == 1
    assert agent.launch(["score", "--help"], 1) == 0
    assert set(psutil.Process().children()) - before == {first}
    agent.end()
    assert gone(first.pid)
    printed = capfd.readouterr()
    assert printed.out.count("Usage: regrow train") == 2 and printed.out.count("Usage: regrow score") == 1
    assert re.search(r"^regrow: rank 0 of 1 \(pid \d+\) ended with exit status 2$", printed.err, re.M), printed.err
