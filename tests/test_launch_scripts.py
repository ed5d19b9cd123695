"""The files that install and start regrow: do they parse, pin, name what exists, and say what a machine lacks?"""

from __future__ import annotations

import contextlib
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
        launcher.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/group\n{program}\n")
        launcher.chmod(0o755)
        # A copy of the scripts: beside the real ones may stand a .venv, whose launcher it would take.
        copy = tmp_path / "launch" / "deepspeed.sh"
        copy.parent.mkdir()
        for name in ("deepspeed.sh", "requeue.sh"):
            shutil.copy(LAUNCH / name, copy.parent)
        path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        # A pause before each command of the script, as on a busy machine: a signal can come between any two.
        slowly = tmp_path / "slowly"
        slowly.write_text("trap 'sleep 0.05' DEBUG\n")
        started.append(
            subprocess.Popen(
                [BASH, str(copy), str(tiny_config)],
                env=dict(os.environ) | {"PATH": path, "PYTHONPATH": str(ROOT), "GPUS": "2", "BASH_ENV": str(slowly)},
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
        # What it started has a group of its own and holds the pipe: left behind, it would be waited for.
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.killpg(int((tmp_path / "group").read_text()), signal.SIGKILL)
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


def test_a_hostfile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Without it the launcher would take this node alone."""
    environment = bare_machine(tmp_path / "bin", "env") | {"HOSTFILE": "hosts"}
    result = subprocess.run(
        [BASH, str(LAUNCH / "deepspeed.sh"), "config.yaml"], env=environment, text=True, capture_output=True, timeout=60
    )
    assert result.returncode == 1 and "HOSTFILE=hosts: no such file" in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes-many.yaml"])
def test_kubernetes_job(name: str) -> None:
    from pipeline.config import load_config

    *_, job = YAML(typ="safe").load_all((LAUNCH / name).read_text())
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
    grace = pod["terminationGracePeriodSeconds"]
    assert grace >= 300 and 240 <= arguments.shutdown_timeout < grace, "a save is killed before the pod is"
    assert pod["shareProcessNamespace"], "torchrun is process 1, which ignores a signal before it has a handler"
    assert arguments.local_addr, "a pod's own name need not resolve"
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")

    command, config, *overrides = arguments.training_script_args
    subprocess.run([sys.executable, "-m", "pipeline", command, "--help"], cwd=ROOT, check=True, capture_output=True)
    loaded = load_config(ROOT / config, overrides)
    folder = loaded.run.folder
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert "persistentVolumeClaim" in mounts[str(folder)], f"the run folder {folder} does not outlive its pod"
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "emptyDir" in mounts[str(loaded.data.cache)], "shards are not on the node's own disk"


def test_kubernetes_pods_of_several_nodes_meet_at_the_first() -> None:
    service, job = YAML(typ="safe").load_all((LAUNCH / "kubernetes-many.yaml").read_text())
    name, spec, template = job["metadata"]["name"], job["spec"], job["spec"]["template"]
    (container,) = template["spec"]["containers"]
    arguments = torchrun_arguments(container["args"])
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == int(arguments.nnodes)
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    port = service["spec"]["ports"][0]["port"]
    assert arguments.rdzv_endpoint == f"{name}-0.{service['metadata']['name']}:{port}"
    assert re.fullmatch(r"[a-z0-9-]+", name), "a pod's host name has no dots"
    assert arguments.local_addr == "$(POD_ADDRESS)" and "POD_ADDRESS" in {each["name"] for each in container["env"]}


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
    words = {"$SLURM_NNODES": "2", "$SLURM_GPUS_ON_NODE": "4", "$lead": "300"}
    given = words | {word.replace("$", "${", 1) + ":?no GPUs: --gpus-per-node}": value for word, value in words.items()}
    words = [given.get(word, word) for word in shlex.split(call.removesuffix("&"))]
    arguments = torchrun_arguments(words[words.index("torchrun") + 1 :])
    assert arguments.module and arguments.training_script == "pipeline"
    assert arguments.training_script_args[:2] == ["run", "$@"]
    assert arguments.rdzv_backend == "c10d" and arguments.nnodes == "2"
    assert arguments.nproc_per_node == "4", "not as many processes as the node gives GPUs"
    assert arguments.shutdown_timeout == 300 and "SIGUSR1" in arguments.signals_to_handle.split(",")
    assert options["signal"] == "B:USR1@300" and "lead=${LEAD:-300}" in text, "the script takes it for another time"
