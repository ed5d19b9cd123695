"""How long training waits for a checkpoint that is written beside it, and for one that it waits for.

    python benchmarks/saving.py --folder /tmp/checkpoints    # the demo's pruned shape: 21 blocks of SmolLM2-135M

A process alone trains random tokens under ZeRO 1 and writes its checkpoints by turns in both ways. What the loop
stands still for in the call is measured: all of it in the one way, the copy to host memory in the other; and a step
that begins while a checkpoint is written beside one that does not: where training and writing share cores it is
longer. The first checkpoint in each way is left out: memory is taken then.
"""

from __future__ import annotations

import argparse
import shutil
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from machine import one_world, show, wait_for
from shapes import random_model, random_rows
from transformers import LlamaConfig

from pipeline.launch import Place, take_place
from pipeline.training.checkpoint import Kept, Layout, checkpoint_bytes
from pipeline.training.engine import Engine
from pipeline.training.fitting import Fit
from pipeline.training.loop import Position, train_steps
from pipeline.training.optimisation import Optimisation
from pipeline.training.saving import Checkpoints
from pipeline.world import World

RECIPE = Optimisation(3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, no_decay=("bias", "norm"), clip=1.0)


def demo_shape(blocks: int, width: int) -> LlamaConfig:
    """SmolLM2-135M's shape with so many blocks, and in its proportions another width."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=width,
        intermediate_size=1536 * width // 576,
        num_hidden_layers=blocks,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )


def measure(arguments: argparse.Namespace, engine: Engine, world: World) -> dict[str, Any]:
    """Waits by way, and seconds of steps with and without a checkpoint under way."""
    layout = Layout.of(world, Fit(1, "none"), 1, "bfloat16", compiled=False)
    ways = {
        name: Checkpoints(arguments.folder, engine, layout, kept=Kept(1), background=name == "background")
        for name in ("blocking", "background")
    }
    rows = random_rows(49152, arguments.row_length, 0)
    steps = train_steps(engine, rows, Position(), steps=10**9, rate=lambda step: 3e-4)
    waits: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    next(steps)
    turns = chain.from_iterable(repeat(tuple(ways), arguments.repeats + 1))
    for number, name in enumerate(turns, start=1):
        wait_for(world.device)
        ways[name].save(number, {"step": number})
        waits[name].append(ways[name].waited)
        for _ in range(arguments.steps):
            beside, begin = ways[name].under_way, perf_counter()
            next(steps)
            wait_for(world.device)
            seconds[beside].append(perf_counter() - begin)
            ways[name].look()
        ways[name].wait()
    figures: dict[str, Any] = {name: median(found[1:]) for name, found in waits.items()}
    figures["share"] = figures["background"] / figures["blocking"]
    figures["step"], figures["beside"] = (median(seconds[way]) if seconds[way] else None for way in (False, True))
    return figures


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints are written; emptied afterwards")
    parser.add_argument("--blocks", type=int, default=21)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--row-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="behind each checkpoint")
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints in each way, after one that is not counted")
    arguments = parser.parse_args()
    take_place(Place())
    world = one_world()
    torch.manual_seed(0)
    model = random_model(demo_shape(arguments.blocks, arguments.width), world.device, torch.bfloat16)
    engine = Engine(model, world, RECIPE, micro_batch=1, accumulation=1, zero_stage=1)
    figures = measure(arguments, engine, world)
    size = checkpoint_bytes(engine.parameters)
    shutil.rmtree(arguments.folder)
    beside = "none began beside" if figures["beside"] is None else f"{figures['beside']:.2f} s"
    row = {
        "Parameters": f"{engine.parameters:,}",
        "Checkpoint": f"{size / 1e9:.2f} GB",
        "Training waits: blocking": f"{figures['blocking']:.3f} s",
        "background": f"{figures['background']:.3f} s",
        "Share": f"{figures['share']:.1%}",
        "Step, nothing written": f"{figures['step']:.2f} s" if figures["step"] else "none",
        "Step beside a write": beside,
    }
    show(world.device, {"parameters": engine.parameters, "bytes": size, **figures}, row)
    world.close()


if __name__ == "__main__":
    main()
