"""torchrun at the first moment of a container: as its process 1, and below another, as in launch/kubernetes.yaml."""

from __future__ import annotations

import os
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
        time.sleep(1)
        (program,) = [
            process
            for process in psutil.Process(outer.pid).children(recursive=True)
            if process.cmdline()[1:2] == torchrun[:1]
        ]
        program.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([program], timeout=1)
        assert bool(alive) != shared, "whether a TERM 1 s after its start ends it"
    finally:
        outer.kill()
        outer.wait()
