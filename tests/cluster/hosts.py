"""Hosts on one machine: network namespaces with names and addresses of their own, whose links can be cut.

Needs root and iproute2. A host has its own network and host name, and the machine's files and processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests import ROOT

NAMES = "regrow-"
#: Enters a host: not ``ip netns exec``, which hides /sys/fs/cgroup.
ENTER = 'mount --bind "$HOSTS_FILE" /etc/hosts; hostname "$HOST_NAME"; exec "$@"'


class Hosts:
    """``names`` and the bridge's own namespace, ``regrow-lan``, which reaches all of them.

    ``cores``: of each host, by its name; the others have the machine's.
    """

    def __init__(self, folder: Path, names: Sequence[str], cores: Mapping[str, int] | None = None):
        self.folder, self.names, self._cores = folder, tuple(names), dict(cores or {})
        self.addresses = {name: f"10.77.0.{10 + number}" for number, name in enumerate(("lan", *names))}
        self.started: list[subprocess.Popen[str]] = []
        self._file = folder / "hosts"
        lines = [f"{address} {name}" for name, address in self.addresses.items()]
        self._file.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")

    def __enter__(self) -> Hosts:
        self._remove()
        _ip("netns", "add", NAMES + "lan")
        _ip("-n", NAMES + "lan", "link", "set", "lo", "up")
        _ip("-n", NAMES + "lan", "link", "add", "lan", "type", "bridge")
        _ip("-n", NAMES + "lan", "addr", "add", f"{self.addresses['lan']}/24", "dev", "lan")
        _ip("-n", NAMES + "lan", "link", "set", "lan", "up")
        for name in self.names:
            space = NAMES + name
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", name, "netns", NAMES + "lan")
            _ip("-n", NAMES + "lan", "link", "set", name, "master", "lan", "up")
            _ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self.processes():
            # Ended meanwhile, or by another's end.
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._remove()

    def _remove(self) -> None:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            if line.startswith(NAMES):
                _ip("netns", "delete", line.split()[0])

    def command(self, host: str, *command: object) -> list[str]:
        """The command as it is to be started here to run on a host; ``lan`` is one too."""
        inside = ["unshare", "--uts", "--mount", "bash", "-c", ENTER, "_", *map(str, command)]
        names = [f"HOSTS_FILE={self._file}", f"HOST_NAME={host}"]
        core = ["taskset", "--cpu-list", str(self._cores[host])] if host in self._cores else []
        return ["nsenter", f"--net=/run/netns/{NAMES}{host}", "env", *names, *core, *inside]

    def start(
        self, host: str, *command: object, environment: Mapping[str, str] | None = None, output: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on a host; what it prints is in ``output``, else to be read from its ``stdout``."""
        to = subprocess.PIPE if output is None else output.open("a")
        process = subprocess.Popen(
            self.command(host, *command),
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, host: str, *command: object, environment: Mapping[str, str] | None = None, seconds: int = 60) -> str:
        """What a command on a host printed; AssertionError where it failed."""
        process = self.start(host, *command, environment=environment)
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, f"{' '.join(map(str, command))} on {host}: status {process.returncode}\n{said}"
        return said

    def cut(self, host: str) -> None:
        """Take a host's link away: nothing is refused or reset, packets are lost."""
        _ip("-n", NAMES + "lan", "link", "set", host, "down")

    def join(self, host: str) -> None:
        """Give the link back."""
        _ip("-n", NAMES + "lan", "link", "set", host, "up")

    def processes(self, host: str | None = None) -> list[int]:
        """Pids of a host's processes, or those of all hosts."""
        found: list[int] = []
        for name in ("lan", *self.names) if host is None else (host,):
            if Path("/run/netns", NAMES + name).exists():
                said = subprocess.run(["ip", "netns", "pids", NAMES + name], capture_output=True, text=True, check=True)
                found += map(int, said.stdout.split())
        return found

    def ranks(self, host: str) -> list[int]:
        """Pids of a host's ranks of regrow: processes, not their readers."""
        found = []
        for pid in self.processes(host):
            try:
                process = psutil.Process(pid)
                if "-m pipeline" in " ".join(process.cmdline()[:6]) and "RANK" in process.environ():
                    found.append(pid)
            except psutil.Error:
                continue
        return found


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
