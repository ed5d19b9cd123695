"""The stages under somebody else's launcher: torchrun and deepspeed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests import ROOT

BIN = Path(sys.executable).parent


# Other launchers. They train a copy whose earlier stages are done.


def launcher(*command: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def torchrun(*arguments: object) -> subprocess.Popen[str]:
    return launcher(BIN / "torchrun", "--standalone", "--nproc-per-node", 2, "-m", "pipeline", *arguments)


def deepspeed(*arguments: object) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return launcher(
        BIN / "deepspeed", "--num_gpus", 2, "--master_port", port, "--no_local_rank", "--module", "pipeline", *arguments
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    output = ""
    while not re.search(text, output):
        line = process.stdout.readline()
        assert line, f"ended before it printed {text!r}:\n{output}"
        output += line
    return output


def below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def still_running(processes: list[psutil.Process], seconds: float = 20) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=seconds)[1]


def test_a_refusal_under_torchrun_is_said_once_and_is_what_its_report_ends_with(lengthen, tmp_path):
    process = torchrun("run", lengthen(tmp_path), "train.micro_batch=3")
    output, _ = process.communicate(timeout=120)
    said = [line for line in output.splitlines() if line.startswith("regrow")]
    assert process.returncode == 1 and len(said) == 1, output
    assert "[rank" not in output and output.count("Traceback") == 1, f"more than torchrun's own:\n{output}"
    reason = said[0].removeprefix("regrow: ")
    assert "does not divide by a micro-batch of 3 x 2 processes" in reason
    assert reason in output.splitlines()[-2], f"torchrun's report does not end with it:\n{output}"
    assert not list(tmp_path.glob("runs/*")), "a refused command left a run"


def test_torchrun_carries_out_all_stages_and_a_second_start_is_refused(
    refused, here, lengthen, same_as_reference, tmp_path
):
    config, run = lengthen(tmp_path), tmp_path / "runs" / "tiny"
    first = torchrun("run", config)
    try:
        read_until(first, r"\[train\] step 2 of")
        holder = (run / ".lock").read_text()
        rank = psutil.Process(int(holder.split()[-1]))
        begin = time.monotonic()
        message = refused("run", config)
        seconds = time.monotonic() - begin
        assert f"run tiny is in use by host {socket.gethostname()} pid {rank.pid}" in message
        assert rank in below(first), "the holder that is named is not a process of the first command"
        assert seconds < 5, f"the second start was refused after {seconds:.1f} s"
        assert f"in use by {holder}" in here("status", run)[1]
        output, _ = first.communicate(timeout=200)
    finally:
        first.kill()
    assert first.returncode == 0, f"the first command was harmed:\n{output}"
    assert sorted(path.parent.name for path in run.glob("*/stage.json")) == sorted(
        ["data", "score", "prune", "train", "evaluate", "report"]
    )
    same_as_reference(run)


def test_deepspeed_and_torchrun_train_to_the_same_bytes_and_leave_nothing_when_killed(
    lengthen, copy_until, same_as_reference, tmp_path
):
    """One run with a checkpoint behind every step, killed under each launcher in turn, and finished under one."""
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path, "b")
    asked = ("train", config, "run.name=b", "train.checkpoint_every=1")
    kills = ((torchrun, "torchrun"), (deepspeed, "bin/deepspeed"), (deepspeed, "deepspeed.launcher.launch"))
    for number, (start, what) in enumerate(kills):
        process = start(*asked)
        # All are found before a step: none is far behind the one before it.
        read_until(process, r"\[train\] started")
        family = [psutil.Process(process.pid), *below(process)]
        ranks = [each for each in family if "RANK" in each.environ()]
        assert len(ranks) == 2, f"two ranks were expected under {what}: {family}"
        victim = next(each for each in family if what in " ".join(each.cmdline()))
        # The third, the ninth, the fifteenth, or what comes behind the checkpoint.
        steps = "|".join(str(step) for step in range(3 + 6 * number, 25))
        read_until(process, rf"\[train\] step ({steps}) of 24")
        victim.send_signal(signal.SIGKILL)
        left = still_running(family)
        process.kill()
        process.communicate()
        assert not left, f"20 s after a kill -9 of {what} there still run: {left}"
        assert not (run / "train" / "stage.json").exists(), f"{what}: the kill came too late, training was done"
    last = deepspeed(*asked)
    output, _ = last.communicate(timeout=200)
    assert last.returncode == 0, output
    assert re.search(r"\[train\] resuming at step \d+ of 24", output), output
    same_as_reference(run)
