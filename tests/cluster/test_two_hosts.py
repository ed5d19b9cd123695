"""Training over two hosts, under torchrun and under deepspeed: one end is killed, or its link is cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests import ROOT
from tests.cluster.conftest import ENVIRONMENT, require, require_same_bytes, wait_for_step
from tests.cluster.hosts import Hosts
from tests.cluster.ssh import start_ssh

pytestmark = pytest.mark.cluster
TWO = ("n2", "n3")
#: Seconds within which the other host's ranks are gone when one end of training is killed.
KILLED = 30
#: ... and both hosts' when a link is cut without a word: the short time-out of a collective, and what it takes to end.
CUT_OFF = 400


@pytest.fixture
def torchrun(hosts: Hosts, long_config: Path, pruned: Path, tmp_path: Path) -> Iterator[Callable[[], list]]:
    """``torchrun()`` trains ``pruned`` with a rank on each host: the two agents, first that where they meet."""

    def start() -> list[subprocess.Popen[str]]:
        meet = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{TWO[0]}:29400", "--rdzv-id", time.monotonic_ns())
        words = ("-m", "pipeline", "train", long_config, f"run.name={pruned.name}")
        agent = ("--nnodes", 2, "--nproc-per-node", 1, *meet)
        return [
            hosts.start(
                name,
                Path(sys.executable).with_name("torchrun"),
                *agent,
                "--local-addr",
                hosts.addresses[name],
                *words,
                environment=ENVIRONMENT,
                output=tmp_path / f"{name}.out",
            )
            for name in TWO
        ]

    yield start
    end_all(hosts)


@pytest.fixture
def deepspeed(
    hosts: Hosts, long_config: Path, pruned: Path, tmp_path: Path
) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """``deepspeed()`` does that by launch/deepspeed.sh on ``lan``, through ssh: the script's process."""
    require("/usr/sbin/sshd", "ssh-keygen", "pdsh")
    environment = start_ssh(tmp_path, hosts, TWO)
    environment = ENVIRONMENT | environment | {"PATH": f"{environment['PATH']}:{ENVIRONMENT['PATH']}"}
    (tmp_path / "hostfile").write_text("".join(f"{name} slots=1\n" for name in TWO))

    def start() -> subprocess.Popen[str]:
        return hosts.start(
            "lan",
            "bash",
            ROOT / "launch" / "deepspeed.sh",
            long_config,
            f"run.name={pruned.name}",
            environment=environment | {"HOSTFILE": str(tmp_path / "hostfile")},
            output=tmp_path / "deepspeed.out",
        )

    yield start
    end_all(hosts)
    for process in hosts.started:
        if "sshd" in str(process.args):
            process.kill()


def end_all(hosts: Hosts) -> None:
    """Kill what a test left of training."""
    for name in hosts.names:
        for pid in hosts.ranks(name):
            os.kill(pid, signal.SIGKILL)


def seconds_until_gone(hosts: Hosts, names: tuple[str, ...], most: float) -> float:
    """Seconds until the hosts have no ranks; AssertionError behind ``most``."""
    begin = time.monotonic()
    while any(hosts.ranks(name) for name in names):
        left = {name: hosts.ranks(name) for name in names}
        assert time.monotonic() - begin < most, f"after {most} s there are ranks yet: {left}"
        time.sleep(0.1)
    return time.monotonic() - begin


def test_where_one_agent_is_killed_the_other_host_ends_and_the_same_command_goes_on(
    hosts, torchrun, pruned, undisturbed
):
    agents = torchrun()
    wait_for_step(pruned, 17)
    # What entered the host has become the agent.
    agents[1].kill()
    seconds_until_gone(hosts, TWO, KILLED)
    for agent in agents:
        assert agent.wait(60) != 0
    assert [agent.wait(900) for agent in torchrun()] == [0, 0]
    require_same_bytes(pruned, undisturbed)


def cut_off_until_both_end(hosts) -> None:
    """Cut the second host off, until nothing of the run is left on either."""
    hosts.cut(TWO[1])
    try:
        seconds_until_gone(hosts, TWO, CUT_OFF)
    finally:
        hosts.join(TWO[1])


def test_where_a_link_is_cut_both_hosts_end_and_the_same_command_goes_on(hosts, torchrun, pruned, undisturbed):
    agents = torchrun()
    wait_for_step(pruned, 17)
    cut_off_until_both_end(hosts)
    for agent in agents:
        assert agent.wait(120) != 0
    assert [agent.wait(900) for agent in torchrun()] == [0, 0]
    require_same_bytes(pruned, undisturbed)


@pytest.mark.parametrize("victim", ["runner", "script and runner"])
def test_where_deepspeed_is_killed_all_hosts_end_and_the_same_command_goes_on(
    hosts, deepspeed, pruned, undisturbed, victim
):
    script = deepspeed()
    wait_for_step(pruned, 17)
    family = psutil.Process(script.pid).children(recursive=True)
    (runner,) = [each for each in family if any(word.endswith("bin/deepspeed") for word in each.cmdline())]
    if victim != "runner":
        script.kill()
    runner.kill()
    seconds_until_gone(hosts, TWO, KILLED)
    assert script.wait(60) != 0
    assert deepspeed().wait(900) == 0
    require_same_bytes(pruned, undisturbed)


def test_where_a_host_of_deepspeed_s_is_cut_off_both_end(hosts, deepspeed, pruned):
    deepspeed()
    wait_for_step(pruned, 5)
    cut_off_until_both_end(hosts)
