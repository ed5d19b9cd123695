"""The program of test_train: stage train within a process that goes on, as under an outside launcher.

    python -m torch.distributed.run --standalone --nproc-per-node 1 -m tests.stages.closing CONFIG RUN=ZERO_STAGE...

Trains each run, and prints as JSON the bytes of all tensors that are alive before and after each.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path

from pipeline.launch import find_place, take_place

place = find_place()
take_place(place)

import torch  # noqa: E402 (threads are settled before)

from pipeline.config import load_config  # noqa: E402
from pipeline.life import telling  # noqa: E402
from pipeline.run import Run  # noqa: E402
from pipeline.stages import train  # noqa: E402
from pipeline.world import World  # noqa: E402


def held() -> int:
    """Bytes of the storages behind all tensors that Python knows of."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def main() -> None:
    world, alive = World.join(place), [held()]
    for name, zero_stage in (argument.split("=") for argument in sys.argv[2:]):
        config = load_config(Path(sys.argv[1]), [f"run.name={name}", f"train.zero_stage={zero_stage}"])
        with telling(lambda line: None) as say:
            done = train.work(config, Run(config.run.folder / name), world, say)
        assert done["steps"] == config.steps
        alive.append(held())
    print(json.dumps({"held": alive, "deterministic": torch.are_deterministic_algorithms_enabled()}))
    world.close()


if __name__ == "__main__":
    main()
