"""Programs that tests start in another process."""

from __future__ import annotations

import subprocess
import sys

from tests import ROOT


def python(code: str, *arguments: object, **more: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **more,
    )
