"""What the benchmarks share: one process's world, the machine and versions that a figure belongs to, and its output."""

from __future__ import annotations

import json
import os
import platform
import resource
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.launch import find_place
from pipeline.world import World


def one_world() -> World:
    """The world of a launcher if there is one, else a process group of this process alone."""
    if "RANK" not in os.environ:
        # Port 0: the system picks a free one.
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="0")
    return World.join(find_place())


def here(device: torch.device) -> dict[str, str]:
    """The date, the hardware and the versions, in words."""
    names = ["torch", "transformers", "deepspeed"]
    versions = ", ".join(["Python " + platform.python_version(), *(f"{name} {version(name)}" for name in names)])
    return {"date": date.today().isoformat(), "hardware": _hardware(device), "versions": versions}


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on a GPU, of the whole process (resident) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(device: torch.device, figures: dict[str, Any], row: dict[str, str]) -> None:
    """Print the figures as one line of JSON, and ``row`` (a heading for each cell) as a line of a Markdown table."""
    machine = here(device)
    cells = {**row, "Hardware": machine["hardware"], "Versions": machine["versions"], "Date": machine["date"]}
    print(json.dumps({**figures, **machine}))
    print("| " + " | ".join(cells) + " |")
    print("|" + " --- |" * len(cells))
    print("| " + " | ".join(cells.values()) + " |", flush=True)
