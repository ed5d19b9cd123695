"""From the config's model section to values: how a model is loaded, and how it is spread where it is too large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import Config
from pipeline.files import of_bytes
from pipeline.importance.block_major import ROOM
from pipeline.memory import available_memory
from pipeline.model.describe import describe_folder
from pipeline.model.dispatch import Dispatch
from pipeline.world import World


def loading(config: Config, dtype: str) -> dict[str, Any]:
    """What ``load_model`` is told of every model, in ``dtype``."""
    return {
        "dtype": dtype,
        "attention": config.model.attention,
        "trust_remote_code": config.model.trust_remote_code,
    }


def spread(config: Config, folder: Path, dtype: str, world: World, scratch: Path) -> Dispatch | None:
    """How the model in ``folder`` is spread in ``dtype``; None where it stands whole on the device of each process.

    Every process of ``world`` asks, and all of them spread, or none: each over its share of the machine's GPUs and of
    the host memory. ``scratch`` is the stage's folder for what may have to be written.
    """
    asked = config.model.dispatch
    if asked is False:
        return None
    share = _share(config, world, scratch)
    here = share.gpus.get(world.device.index, 0) if share.gpus else share.host
    large = weight_bytes(describe_folder(folder, config.model.trust_remote_code), dtype) > here
    return share if any(world.gather(asked is True or large)) else None


def weight_bytes(model: nn.Module, dtype: str) -> int:
    """Bytes of a model's parameters in ``dtype``, tied ones once; it may be on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters()) * getattr(torch, dtype).itemsize


def dispatch_note(config: Config, model: nn.Module, gpu_bytes: float) -> list[str]:
    """A line on what happens where ``model``, on the meta device, is too large for a GPU of ``gpu_bytes``."""
    room = config.model.device_memory or ROOM * gpu_bytes
    weights = weight_bytes(model, config.model.dtype)
    if weights <= room and config.model.dispatch is not True:
        return []
    what = f"the dense model's weights ({of_bytes(weights)})"
    if weights > room:
        what += f" do not fit into {of_bytes(room)} of a GPU"
    if config.model.dispatch is False:
        return [
            f"{what}, and model.dispatch is false: stages evaluate and prune cannot run it; set model.dispatch=auto"
        ]
    gpus = -(-weights // int(room))
    more = f"; {gpus} GPUs hold it, and evaluate.processes=1 gives one process all of a machine" if gpus > 1 else ""
    return [
        f"model.dispatch {str(config.model.dispatch).lower()}: {what}: in stages evaluate and prune each process "
        f"spreads it over its share of the GPUs, host memory and disk{more}"
    ]


def _share(config: Config, world: World, scratch: Path) -> Dispatch:
    """What this process may fill: its GPU, those that would be nobody's, and its part of the host memory."""
    on_gpu, model = world.device.type == "cuda", config.model
    mine = range(world.device.index, torch.cuda.device_count(), world.on_this_machine) if on_gpu else ()
    return Dispatch(
        {gpu: model.device_memory or int(ROOM * torch.cuda.mem_get_info(gpu)[0]) for gpu in mine},
        int(ROOM * available_memory()) // world.on_this_machine if model.host_memory is None else model.host_memory,
        offloaded(scratch, world),
    )


def offloaded(scratch: Path, world: World) -> Path:
    """A process's folder, in its stage's folder ``scratch``, for weights that are written to be read from disk."""
    return scratch / "offloaded" / str(world.rank)
