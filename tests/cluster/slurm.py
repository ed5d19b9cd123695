"""A Slurm of three nodes on one machine: munged, a controller, and a node daemon in a host of its own for each node."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.hosts import Hosts

#: GPUs of each node, as Slurm believes. A job that has a node to itself is given all of them.
NODES = {"n1": 2, "n2": 1, "n3": 1}
#: Seconds without a word of a node's daemon after which the controller takes the node for lost.
NODE_LOST = 30

CONFIG = """
ClusterName=regrow
SlurmctldHost=lan({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
CommunicationParameters=NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
JobRequeue=1
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout={lost}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class Slurm:
    """The cluster; ``hosts`` are its nodes, and the controller stands on ``lan``."""

    def __init__(self, folder: Path, hosts: Hosts):
        self.folder, self.hosts = folder, hosts
        self._environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Slurm:
        self._write()
        self._start_munged()
        for name, command in (("lan", "slurmctld"), *((node, "slurmd") for node in NODES)):
            # Node daemons know themselves by their host's name.
            self.hosts.start(
                name,
                f"/usr/sbin/{command}",
                "-D",
                "-f",
                self.folder / "slurm.conf",
                environment=self._environment,
                output=self.folder / f"{command}-{name}.out",
            )
        self.wait_for(lambda: self.tell("sinfo", "-h", "-o", "%T").split() == ["idle"], "idle nodes", 60)
        return self

    def __exit__(self, *error: object) -> None:
        """All of it goes with its hosts."""

    def _write(self) -> None:
        for name in ("munge", "state"):
            (self.folder / name).mkdir(mode=0o700)
        gpus = [self.folder / f"gpu{number}" for number in range(max(NODES.values()))]
        for gpu in gpus:
            # What Slurm wants of a GPU is a device file.
            os.mknod(gpu, 0o20666, os.makedev(1, 3))
        nodes = "\n".join(
            f"NodeName={node} NodeAddr={self.hosts.addresses[node]} CPUs=64 RealMemory=20000 Gres=gpu:{count}"
            for node, count in NODES.items()
        )
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                controller=self.hosts.addresses["lan"], folder=self.folder, lost=NODE_LOST, nodes=nodes
            ).lstrip()
        )
        files = [f"NodeName={node} Name=gpu File={self.folder}/gpu[0-{count - 1}]" for node, count in NODES.items()]
        (self.folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *files]) + "\n")

    def _start_munged(self) -> None:
        munge = self.folder / "munge"
        (munge / "munge.key").write_bytes(secrets.token_bytes(64))
        (munge / "munge.key").chmod(0o400)
        files = {
            "key-file": "munge.key",
            "socket": "munge.sock",
            "pid-file": "munged.pid",
            "seed-file": "munge.seed",
            "log-file": "munged.log",
        }
        command = ["munged", "--force", "--foreground", *(f"--{key}={munge / name}" for key, name in files.items())]
        self.hosts.start("lan", *command, output=self.folder / "munged.out")
        self.wait_for((munge / "munge.sock").exists, "munged", 10)

    def tell(self, *command: object) -> str:
        """What a command of Slurm's printed on the controller."""
        return self.hosts.run("lan", *command, environment=self._environment)

    def submit(self, folder: Path, *words: object, environment: dict[str, str]) -> str:
        """Submit a job from a folder; returns its number."""
        command = ("env", f"--chdir={folder}", "sbatch", *words)
        said = self.hosts.run("lan", *command, environment={**self._environment, **environment})
        return re.search(r"Submitted batch job (\d+)", said)[1]

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, by its names for it."""
        words = self.tell("scontrol", "-o", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, number: str, state: str, seconds: float) -> dict[str, str]:
        """Wait for a job's state. What a requeue holds back is let go at once."""

        def arrived() -> bool:
            found = self.job(number)
            if found["JobState"] == "PENDING" and found["Reason"] in ("BeginTime", "None"):
                self.hosts.start(
                    "lan", "scontrol", "update", f"JobId={number}", "StartTime=now", environment=self._environment
                ).wait()
            return found["JobState"] == state

        self.wait_for(arrived, f"job {number} {state}", seconds)
        return self.job(number)

    @staticmethod
    def wait_for(met: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until ``met()``; AssertionError naming ``what`` is not there in time."""
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            time.sleep(0.2)
