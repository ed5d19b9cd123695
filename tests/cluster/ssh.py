"""ssh between hosts without a password: a server in each, keys of their own, and an ``ssh`` that uses them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.hosts import Hosts

SERVER = """
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
"""


def start_ssh(folder: Path, hosts: Hosts, names: Sequence[str]) -> dict[str, str]:
    """Start a server on each of ``names``; returns the environment in which ssh, and pdsh, reach them."""
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder / "sshd_config").write_text(SERVER.format(folder=folder).lstrip())
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in names:
        server = ("/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config")
        hosts.start(name, *server, output=folder / f"sshd-{name}.out")
    # DeepSpeed's own look at whether a host is reached takes no options: they are put before those of every call.
    options = f"-i {folder}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh {options} "$@"\n')
    (folder / "bin" / "ssh").chmod(0o755)
    return {"PDSH_RCMD_TYPE": "ssh", "PATH": str(folder / "bin")}
