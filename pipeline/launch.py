"""This process's place in the world: alone, or one of several that a launcher started.

A stage runs alone, under regrow's own launching agent, or under somebody else's launcher (torchrun, deepspeed, srun, a
Kubernetes job): this module is the one place that reads their environment variables. It also sees to it that no
process outlives its run: every process asks the kernel to be ended with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RegrowError

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
#: Our own launches tell the processes that they start who started them: the launching agent's pid.
AGENT = "REGROW_AGENT"
#: Exit status of a rank when what was wrong has been said: nobody need say more.
TOLD = 3
#: In the command line of deepspeed's launcher on a node.
DEEPSPEED = "deepspeed.launcher.launch"
#: Seconds for a launcher to end the others when one process has ended.
END = 5


class PlaceError(RegrowError):
    """What a launcher left out; every process of the job meets it."""


@dataclass(frozen=True)
class Place:
    """Where a process stands: its rank among ``world`` processes and among the ``local_world`` of its machine.

    ``launcher`` is None for a process on its own, ``regrow`` when regrow started it, ``other`` otherwise.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launcher: str | None = None


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that a launcher's environment variables describe: torchrun's, deepspeed's or srun's.

    Raises PlaceError where they hold no numbers, or a rank that is none of so many.
    """
    try:
        place = _stated_place(environment)
    except ValueError as error:
        raise PlaceError(f"a launcher's variable (RANK, WORLD_SIZE, SLURM_...) holds no number: {error}") from None
    if not 0 <= place.rank < place.world:
        raise PlaceError(f"rank {place.rank} (RANK) of {place.world} processes (WORLD_SIZE): ranks count from 0")
    return place


def _stated_place(environment: Mapping[str, str]) -> Place:
    if "RANK" in environment and "WORLD_SIZE" in environment:
        local_world = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or environment["WORLD_SIZE"]
        return Place(
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_RANK", environment["RANK"])),
            int(local_world),
            "regrow" if AGENT in environment else "other",
        )
    # A batch script has SLURM_PROCID too, but no step: what runs in it without srun stands alone.
    if "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        return Place(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_NTASKS"]),
            int(environment["SLURM_LOCALID"]),
            _tasks_here(environment),
            "other",
        )
    return Place()


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Tasks that srun started on this node, from Slurm's list of them: ``8``, ``8(x2)``, ``4(x2),3``."""
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS")
    stated = next(environment[name] for name in names if environment.get(name))
    counts: list[int] = []
    for part in stated.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    # One number may stand for all nodes.
    return counts[min(int(environment.get("SLURM_NODEID", "0")), len(counts) - 1)]


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent ends; end at once if ``parent`` is gone already.

    Launchers give their workers process groups of their own, so that killing a launcher would leave them running.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def name_process(name: str) -> None:
    """Call this process ``name`` (15 bytes) where ps and top list processes: a fork has its parent's command line."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


def _die_with_runner() -> None:
    """Under deepspeed's launcher end with what stands above it too: the ``deepspeed`` command or, on another node, the
    server of its ssh connection, which ends with that connection.

    The launcher does not notice when these are gone; it does notice, and ends itself, when a rank has ended.
    """
    import psutil

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        if DEEPSPEED not in " ".join(parent.cmdline()):
            return
        above = parent.parents()[:1]
        # A shell that the connection's command line was given to.
        if above and DEEPSPEED in " ".join(above[0].cmdline()):
            above = parent.parents()[:2]
        if not above:
            return

        def watch() -> None:
            while all(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in above):
                time.sleep(1)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def take_place(place: Place) -> None:
    """Settle this process: die with the launcher, and take cores / local processes threads under every launcher.

    Called before torch is imported: its thread pools read the variables once. Raises PlaceError where the processes
    were not told where to meet.
    """
    if place.launcher is not None:
        # A rank that waits for its peers inside a collective runs no Python: signals must end it by themselves.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        agent = os.environ.get(AGENT)
        die_with_parent(int(agent) if agent else None)
        if place.launcher == "other":
            _die_with_runner()
    if place.launcher == "other":
        _require_meeting_point(os.environ)
        # srun says it in words of its own; DeepSpeed reads these.
        for name in ("rank", "world_size", "local_rank", "local_world_size"):
            os.environ.setdefault(name.upper(), str(getattr(place, name.removesuffix("_size"))))
    threads = max(1, cores() // place.local_world)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # Read by cuBLAS at its start; deterministic training needs it, and it costs nothing otherwise.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # NCCL's flight recorder: the last so many collectives of each process, which the watchdog leaves at a hang.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")


def _require_meeting_point(environment: Mapping[str, str]) -> None:
    """PlaceError where the processes of a launcher were not told the address and the port of the first of them."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise PlaceError(
            f"{' and '.join(missing)}: not set; set MASTER_ADDR and MASTER_PORT for all processes, to a name or an "
            "address of the machine of rank 0 and a free port there (for srun see launch/slurm.sbatch)"
        )
    port = environment["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise PlaceError(f"MASTER_PORT is {port!r}; it must be a port's number, from 1 to 65535, the same everywhere")


def choose_gpu(place: Place, gpus: int, listed: str | None) -> int:
    """The index of the GPU that a process takes of the ``gpus`` that it sees: that of its place on the machine.

    Where the launcher lists one GPU (``listed``: CUDA_VISIBLE_DEVICES), as srun does under --gpus-per-task, each
    process sees its own, and takes the first. RegrowError where there is none for this process.
    """
    if place.local_rank < gpus:
        return place.local_rank
    if gpus == 1 and listed and "," not in listed:
        return 0
    raise RegrowError(
        f"rank {place.rank} has no GPU: it sees {gpus}, and {place.local_world} processes were started on its machine; "
        "start one for each GPU, or give each its own by CUDA_VISIBLE_DEVICES"
    )


def require_own_gpus(taken: Sequence[tuple[str, str] | None]) -> None:
    """PlaceError where two processes took one GPU. ``taken``: (machine, the GPU's own name) by rank, None for none."""
    ranks: dict[tuple[str, str], int] = {}
    for rank, gpu in enumerate(taken):
        if gpu is None:
            continue
        if gpu in ranks:
            raise PlaceError(
                f"ranks {ranks[gpu]} and {rank} took the same GPU of {gpu[0]} ({gpu[1]}), the only one that they see; "
                "start one process for each GPU, and let CUDA_VISIBLE_DEVICES list all of them, or for each its own"
            )
        ranks[gpu] = rank


def report_to_launcher(message: str) -> None:
    """Leave the message where torchrun looks for it: its own report of the failure ends with it then.

    Under our own launch nobody reads it, and torch logs that it has nowhere to copy it.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and AGENT not in os.environ:
        reason = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": reason}), encoding="utf-8")


def name_accelerator() -> None:
    """Tell DeepSpeed where there is no GPU: else it warns, in every process, that it had to find out. transformers
    imports it, too, when a model is saved."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def count_processes(asked: int | str) -> int:
    """Processes for a stage: as asked, but no more than there are GPUs; ``auto`` is one for each GPU, or one."""
    import torch

    gpus = torch.cuda.device_count()
    if asked == "auto":
        return max(1, gpus)
    return min(int(asked), gpus) if gpus else int(asked)
