"""What a record says of the machine: device, cores, and what Python and system are."""

from __future__ import annotations

import os
import platform

from pipeline.launch import Place
from pipeline.stages.hardware import hardware
from pipeline.world import World


def test_a_cpu_is_named_with_its_cores():
    found = hardware(World.join(Place(), use_gpu=False))
    assert found["device"] == "CPU" and found["cores"] == str(os.cpu_count())
    assert found["python"] == platform.python_version() and found["processor"]
