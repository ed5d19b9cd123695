"""A machine that has hardly a tool, for scripts that must say what they miss."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def bare_machine(folder: Path, *tools: str) -> dict[str, str]:
    """An environment whose PATH has nothing but links to ``tools``."""
    folder.mkdir()
    for tool in ("bash", "dirname", *tools):
        (folder / tool).symlink_to(shutil.which(tool))
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "VIRTUAL_ENV", "REGROW_TORCH")}
    return kept | {"PATH": str(folder)}
