"""Tokens a second, MFU and peak memory of the train stage's own engine and loop on the shapes of pruned 7B models.

    python benchmarks/throughput.py --blocks 6    # 1.5B, as pruned from Vicuna-7B; 12: 2.7B; 17: 3.7B
    torchrun --nproc-per-node 8 benchmarks/throughput.py --blocks 17

Weights and tokens are random: speed does not depend on them. Blocks are Vicuna-7B's, in its proportions where another
``--width`` is asked for. The first step is not timed; the figures are those of the median step. Memory is the most that
tensors took on the GPU (on a CPU: the most that the process took).
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from typing import Any

import torch
from machine import one_world, peak_memory, show
from shapes import random_model, random_rows, vicuna
from transformers import PreTrainedModel

from pipeline.launch import find_place, take_place
from pipeline.model.blocks import block_parameters
from pipeline.model.costs import (
    Trained,
    attention_width,
    memory_per_gpu,
    mfu,
    model_flops_per_token,
    peak_flops,
    product_parameters,
)
from pipeline.training.engine import Engine
from pipeline.training.loop import Position, Step, train_steps
from pipeline.training.optimisation import Optimisation
from pipeline.world import World


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Throughput of the train stage's engine on pruned shapes.")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--width", type=int, default=4096, help="hidden size: at most 128, or a multiple of 128")
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that warms up")
    parser.add_argument("--zero-stage", type=int, default=1, choices=[0, 1, 2, 3])
    parser.add_argument("--gradient-checkpointing", default="none", choices=["none", "selective", "full"])
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--whole-logits", action="store_true", help="make the loss from a whole micro-batch's logits")
    parser.add_argument("--attention", default="sdpa", help="attention implementation of transformers")
    parser.add_argument("--ceiling", type=float, metavar="FLOP/S", help="of this device, by benchmarks/ceiling.py")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the figures."""
    arguments = read_arguments()
    take_place(find_place())
    world = one_world()
    config = vicuna(arguments.blocks, arguments.width)
    torch.manual_seed(0)
    model = random_model(config, world.device, torch.bfloat16, arguments.attention)
    # Before ZeRO stage 3 splits them.
    parameters, products, block = model.num_parameters(), product_parameters(model), block_parameters(model)[0]
    flops = model_flops_per_token(model, arguments.row_length)
    estimate = memory_per_gpu(
        Trained(parameters, block, config),
        arguments.zero_stage,
        world.size,
        arguments.micro_batch,
        arguments.row_length,
        gradient_checkpointing=arguments.gradient_checkpointing,
    )["total"]
    try:
        steps = timed_steps(arguments, model, world)
    except torch.OutOfMemoryError as error:
        sys.exit(
            f"{parameters:,} parameters do not fit: {str(error).splitlines()[0]}\n"
            f"Estimated {estimate / 1e9:.1f} GB; take a smaller --micro-batch or --gradient-checkpointing selective"
        )
    figures = figures_of(arguments, world, steps, parameters=parameters, flops=flops, estimate=estimate)
    if world.rank == 0:
        tell(arguments, world, figures, products, attention_width(config))
    world.close()


def timed_steps(arguments: argparse.Namespace, model: PreTrainedModel, world: World) -> list[Step]:
    """The steps of the stage's engine and loop, the first of which warms up."""
    engine = Engine(
        model,
        world,
        Optimisation(1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, no_decay=("bias", "norm"), clip=1.0),
        micro_batch=arguments.micro_batch,
        accumulation=arguments.accumulation,
        zero_stage=arguments.zero_stage,
        gradient_checkpointing=arguments.gradient_checkpointing,
        compile_blocks=arguments.compile,
    )
    if arguments.whole_logits:
        engine.head = None
    rows = random_rows(model.config.vocab_size, arguments.row_length, world.rank)
    steps = []
    for step in train_steps(engine, rows, Position(), steps=1 + arguments.steps, rate=lambda step: 1e-4):
        steps.append(step)
        for line in () if engine.compiled is None else engine.compiled.news():
            print(line, flush=True)
    return steps


def figures_of(
    arguments: argparse.Namespace, world: World, steps: list[Step], *, parameters: int, flops: float, estimate: int
) -> dict[str, Any]:
    """What was asked for and what was measured, by name."""
    on_gpu = world.device.type == "cuda"
    peak = peak_flops(torch.cuda.get_device_name(world.device)) if on_gpu else None
    speed = median(step.tokens_per_second for step in steps[1:])
    used, share = (mfu(speed / world.size, flops, most) for most in (peak, arguments.ceiling))
    return {
        "blocks": arguments.blocks,
        "width": arguments.width,
        "parameters": parameters,
        "processes": world.size,
        "micro_batch": arguments.micro_batch,
        "accumulation": arguments.accumulation,
        "row_length": arguments.row_length,
        "zero_stage": arguments.zero_stage,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "compiled": arguments.compile,
        "whole_logits": arguments.whole_logits,
        "attention": arguments.attention,
        "timed_steps": arguments.steps,
        "tokens_per_second": speed,
        "seconds_per_step": median(step.seconds for step in steps[1:]),
        "flops_per_token": flops,
        "peak_flops": peak,
        "mfu": used,
        "ceiling": arguments.ceiling,
        "of_ceiling": share,
        "peak_memory": peak_memory(world.device),
        "estimated_memory": estimate,
        "losses": [step.loss for step in steps],
    }


def tell(arguments: argparse.Namespace, world: World, figures: dict[str, Any], products: int, width: int) -> None:
    """Print the formulas of FLOPs and MFU with their numbers, and the figures. ``products`` are the parameters that
    text is multiplied by, ``width`` is attention's."""
    peak, used, share = figures["peak_flops"], figures["mfu"], figures["of_ceiling"]
    print(
        f"FLOPs for a token: 6 N + 12 L W T = 6 x {products:,} + 12 x {arguments.blocks} x "
        f"{width} x {arguments.row_length} = {figures['flops_per_token']:.4g}; N parameters without the input "
        "embedding, L blocks, W heads x head size, T row length\n"
        f"MFU: tokens/s of a device x FLOPs for a token / {f'{peak:.4g}' if peak else 'peak FLOP/s (unknown here)'}"
    )
    show(
        world.device,
        figures,
        {
            "Model": f"{arguments.blocks} blocks of {arguments.width}, {figures['parameters'] / 1e9:.3g}B parameters",
            "Rows": f"{arguments.micro_batch} x {arguments.accumulation} x {world.size} of {arguments.row_length}",
            "ZeRO": f"{arguments.zero_stage}, checkpointing {arguments.gradient_checkpointing}",
            "Blocks": "compiled" if arguments.compile else "as they are",
            "Loss": "whole logits" if arguments.whole_logits else "in chunks",
            "Tokens/s": f"{figures['tokens_per_second']:,.0f}",
            "MFU": "unknown peak" if used is None else f"{used:.1%}",
            "Of the ceiling": "not measured" if share is None else f"{share:.1%}",
            "Peak memory": f"{figures['peak_memory'] / 1e9:.2f} GB",
            "Estimated": f"{figures['estimated_memory'] / 1e9:.2f} GB",
        },
    )


if __name__ == "__main__":
    main()
