"""torchrun at the first moment of a container: as its process 1, and below another, as in launch/kubernetes.yaml."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import ROOT
from tests.cluster.conftest import ENVIRONMENT, require

pytestmark = pytest.mark.cluster
#: What holds a pod's shared namespace, then the container's program.
BELOW = 'sleep 300 & "$@" & wait'


def started(outer: subprocess.Popen[bytes], script: str) -> psutil.Process:
    """The process below ``outer`` that runs the script, as soon as it is there."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for process in psutil.Process(outer.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[1:2] == [script]:
                    return process
        time.sleep(0.005)
    raise AssertionError(f"no process runs {script}")


def catches(process: psutil.Process, number: int) -> bool:
    """Whether the process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)[1], 16)
    return bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize("shared", [False, True])
def test_a_term_at_once_ends_torchrun_only_below_another_process(shared):
    require("unshare")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "-m", "pipeline", "--help"]
    command = ["bash", "-c", BELOW, "_", *torchrun] if shared else torchrun
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", *command],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        program = started(outer, torchrun[0])
        assert not catches(program, signal.SIGTERM), "it was past its first moment"
        program.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([program], timeout=1)
        assert bool(alive) != shared, "whether a TERM before it has a handler ends it"
    finally:
        outer.kill()
        outer.wait()
