"""The program that the tests of training start under torchrun: real DeepSpeed engines, one case after another.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.training.program FOLDER CASE...

A case is named by what it measures, the ZeRO stage and the dtype: ``parity-1-fp32``. What it measured goes to
FOLDER/CASE.json on rank 0, for the tests to judge. Where it raises, what it raised goes to FOLDER/CASE.RANK.failed, and
the next case has its turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.training.kit import Case, place  # first of all: it settles this process's place and threads

# isort: split
import torch

from pipeline.world import World
from tests.training import compiling, device, elastic, gradients, lowrank, parity, saving, stops, teaching

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES: dict[str, Callable[[Case], dict[str, Any]]] = {
    function: getattr(module, function)
    for module, functions in {
        parity: ("parity", "within", "masked", "split", "recomputed", "signs", "sums"),
        compiling: ("compiled", "compiled_within", "uncompilable"),
        device: ("reads", "closed"),
        gradients: ("precise", "unreached", "kept", "passed_over", "routed"),
        stops: (
            "stopped_gradient",
            "stopped_loss",
            "skipped_gradient",
            "skipped_loss",
            "skipped_spike",
            "no_target",
            "worn_out",
            "slowed",
        ),
        teaching: ("taught", "taught_split", "taught_within", "taught_compiled", "recalled", "resume_taught"),
        saving: ("resume", "resume_with_all", "export", "beside", "one_sided"),
        elastic: ("written", "written_lora", "taken_up"),
        lowrank: ("lora_parity", "lora_resume", "lora_recomputed", "lora_compiled", "lora_export"),
    }.items()
    for function in functions
}
#: How long a process waits for the others to end a case as well: those that it left in the middle of a call wait for
#: ever, and only another start of the program goes on.
PATIENCE = 30


def measure(name: str, world: World, folder: Path) -> bool:
    """One case, to its files; False where it raised."""
    what, stage, dtype = name.split("-")
    try:
        found = CASES[what](Case(world, folder, int(stage), DTYPES[dtype]))
    except Exception:
        traceback.print_exc()
        (folder / f"{name}.{world.rank}.failed").write_text(traceback.format_exc())
        return False
    if world.rank == 0:
        (folder / f"{name}.json").write_text(json.dumps(found))
    return True


def await_the_others(name: str, world: World, folder: Path) -> None:
    """Go on when all have ended the case; without a call to them, since one may be waiting in another call."""
    (folder / f"{name}.{world.rank}.ended").touch()
    end = time.monotonic() + PATIENCE
    while len(list(folder.glob(f"{name}.*.ended"))) < world.size:
        if time.monotonic() > end:
            os._exit(1)
        time.sleep(0.002)


def main() -> int:
    folder, world = Path(sys.argv[1]), World.join(place)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    good = True
    for name in sys.argv[2:]:
        good = measure(name, world, folder) and good
        await_the_others(name, world, folder)
    with contextlib.suppress(RuntimeError):
        world.close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
