"""The hardware that a stage ran on, as its record names it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pipeline.world import World


def hardware(world: World) -> dict[str, str]:
    """What a record says of the machine of ``world``'s first process."""
    import torch

    device = "CPU"
    if world.device.type == "cuda":
        device = f"{world.size} x {torch.cuda.get_device_name(world.device)}"
    return {
        "device": device,
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
