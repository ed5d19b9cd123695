"""The files that install and start regrow: do they parse, pin, name what exists, and say what a machine lacks?"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from tests import ROOT
from tests.bare import bare_machine

LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run", ROOT / "benchmarks" / "gpu.sh"]
BASH = shutil.which("bash")

#: The options of sbatch that the script uses, and what their values look like.
SBATCH_OPTIONS = {
    "job-name": r"[\w.-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"1",
    "gpus-per-node": r"8",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]?",
    "exclusive": r"",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "requeue": r"",
    "open-mode": r"append|truncate",
    "output": r"[\w./%-]+",
    "signal": r"(B:)?[A-Z0-9]+(@\d+)?",
}


def torchrun_arguments(words: list[str]):
    """torchrun's own reading of its command line."""
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(words)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read(script: Path) -> None:
    result = subprocess.run([BASH, "-n", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, f"bash cannot read {script.name}:\n{result.stderr}"


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_launchers_start_the_ranks(launcher: str, tmp_path: Path) -> None:
    """Two CPU ranks of `train --help`: the launcher takes its flags, finds the module and hands the arguments on."""
    environment = dict(os.environ) | {
        "GPUS": "2",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
    }
    result = subprocess.run(
        [BASH, str(LAUNCH / f"{launcher}.sh"), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{launcher}.sh ended with {result.returncode}:\n{result.stdout}{result.stderr}"
    assert result.stdout.count("Usage:") == 2, f"not two ranks printed train's help:\n{result.stdout}{result.stderr}"


#: Signals that a shell, or nohup, ignores for what it starts in the background.
IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


@pytest.fixture
def deepspeed_script(tmp_path: Path, tiny_config: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """``deepspeed_script(program)``: the script with a shell program in the launcher's place: what it gets of signals
    is the script's doing, and is real."""
    started = []

    def start(program: str) -> subprocess.Popen[str]:
        launcher = tmp_path / "deepspeed"
        launcher.write_text(f"#!/bin/sh\n{program}\n")
        launcher.chmod(0o755)
        # A copy of the script: beside the real one may stand a .venv, whose launcher it would take.
        copy = tmp_path / "launch" / "deepspeed.sh"
        copy.parent.mkdir()
        shutil.copy(LAUNCH / "deepspeed.sh", copy)
        path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        started.append(
            subprocess.Popen(
                [BASH, str(copy), str(tiny_config)],
                env=dict(os.environ) | {"PATH": path, "PYTHONPATH": str(ROOT), "GPUS": "2"},
                text=True,
                stdout=subprocess.PIPE,
                # Tests that run in the background have these ignored, and a shell cannot trap what was ignored at its
                # start.
                preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in IGNORED],
            )
        )
        return started[-1]

    yield start
    for script in started:
        script.kill()
        script.communicate()


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_deepspeed_script_asks_training_to_stop_on_every_signal(name: str, deepspeed_script: Any, tmp_path: Path):
    """By the file that the first rank looks for, which it takes away; the status is the ranks'."""
    stop = tmp_path / "runs" / "tiny" / "train" / "STOP"
    script = deepspeed_script(f"echo started; while ! [ -s {stop} ]; do sleep 0.1; done; cat {stop}; exit 75")
    assert script.stdout.readline() == "started\n"
    script.send_signal(getattr(signal, f"SIG{name}"))
    output, _ = script.communicate(timeout=60)
    assert (output, script.returncode) == (f"SIG{name}\n", 75)
    assert not stop.exists(), "the next start finds the file"


def test_deepspeed_script_ends_what_it_started_on_a_second_signal(deepspeed_script: Any):
    script = deepspeed_script("sleep 120 &\necho started $$ $!\nwait")
    started = [int(word) for word in script.stdout.readline().split()[1:]]
    script.send_signal(signal.SIGTERM)
    # Some more at once are the same request.
    script.send_signal(signal.SIGTERM)
    time.sleep(4.5)
    assert script.poll() is None, "the first signal ended it"
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=60)
    left = [pid for pid in started if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "the script ended on a second SIGTERM, and what it started went on"
    assert script.returncode > 128, f"exit status {script.returncode}"


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_scripts_without_a_gpu_ask_for_a_number(launcher: str, tmp_path: Path) -> None:
    environment = bare_machine(tmp_path / "bin", "env")
    environment.pop("GPUS", None)
    result = subprocess.run(
        [BASH, str(LAUNCH / f"{launcher}.sh"), "config.yaml"],
        env=environment,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert result.returncode == 1 and "no GPU here; say how many CPU processes: GPUS=2" in result.stderr, result.stderr


def test_kubernetes_job() -> None:
    from pipeline.config import load_config

    job = YAML(typ="safe").load((LAUNCH / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["spec"]["backoffLimit"] > 0, "without retries the job does not resume"
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] in ("Never", "OnFailure"), "a Job refuses any other restartPolicy"
    (container,) = pod["containers"]
    assert container["command"] == ["torchrun"]
    assert all(isinstance(word, str) for word in container["args"]), "Kubernetes takes strings as args"

    arguments = torchrun_arguments(container["args"])
    assert arguments.module and arguments.training_script == "pipeline"
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert int(arguments.nproc_per_node) == gpus, "as many processes as GPUs"
    # 30 seconds are torchrun's own patience with ranks that do not end.
    assert pod["terminationGracePeriodSeconds"] > 30, "the pod is killed before torchrun has ended its ranks"

    command, config, *overrides = arguments.training_script_args
    subprocess.run([sys.executable, "-m", "pipeline", command, "--help"], cwd=ROOT, check=True, capture_output=True)
    folder = load_config(ROOT / config, overrides).run.folder
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert "persistentVolumeClaim" in mounts[str(folder)], f"the run folder {folder} does not outlive its pod"
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def test_sbatch_script() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.startswith("#SBATCH"):
            match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert match, f"slurm.sbatch line {number} is not #SBATCH --option[=value]: {line!r}"
            name, value = match[1], match[2] or ""
            assert name in SBATCH_OPTIONS, f"slurm.sbatch line {number}: unknown option --{name}"
            assert re.fullmatch(SBATCH_OPTIONS[name], value), f"slurm.sbatch line {number}: --{name}={value}"
            assert not any(word and word[0] != "#" for word in lines[: number - 1]), f"line {number} is after a command"
            options[name] = value
    assert "requeue" in options and options["open-mode"] == "append", "a requeued job must go on in the same log"

    text = "\n".join(lines).replace("\\\n", " ")
    (call,) = [line for line in text.splitlines() if line.startswith("srun ")]
    given = {"$SLURM_NNODES": "2", "${SLURM_GPUS_ON_NODE:-8}": "4"}
    words = [given.get(word, word) for word in shlex.split(call.removesuffix("&"))]
    arguments = torchrun_arguments(words[words.index("torchrun") + 1 :])
    assert arguments.module and arguments.training_script == "pipeline"
    assert arguments.training_script_args == ["run", "$@"]
    assert arguments.rdzv_backend == "c10d" and arguments.nnodes == "2"
    assert arguments.nproc_per_node == "4", "not as many processes as the node gives GPUs"
    warning = int(options["signal"].partition("@")[2])
    # 30 seconds are torchrun's own patience with ranks that do not end.
    assert warning > 30, "Slurm ends the job before the batch script could requeue it"
