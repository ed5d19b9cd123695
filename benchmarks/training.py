"""What the train stage's own loop costs over a bare torch loop of the same arithmetic, in one process.

    python benchmarks/training.py                 # the demo's pruned shape: 21 blocks of SmolLM2-135M
    python benchmarks/training.py --compile       # the blocks of both compiled, and the bare loop's head with its loss
    python benchmarks/training.py --compile --vicuna 4096 --blocks 6 --micro-batch 8 --row-length 2048   # for a GPU

Ours is what the train stage runs: lanes that read and tokenize real text, DeepSpeed ZeRO 1, ``train_steps`` with
its counts, losses and gradient norms. The bare loop is some twenty lines of torch: the same model class with bf16
weights from the same seed, the same rows, tokenized beforehand, fp32 accumulation of the micro-batches' bf16
gradients, the same clipping, torch's own AdamW on fp32 master weights, one copy back to bf16. It reads its loss and
gradient norm once in a step, as ours does. Both run under the settings of the stage (deterministic kernels on a CPU).
With ``--vicuna`` both train blocks of that width on random tokens, and no text is read.

The two take turns of a few steps in one run; the overhead compares the medians of their turns. That both do the same
work is shown by their losses and gradient norms, step by step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from machine import one_world, show, wait_for
from shapes import random_model, random_rows, vicuna
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from pipeline.data.corpus.listing import list_source
from pipeline.data.remote.cache import ShardCache
from pipeline.data.sources import TextSource
from pipeline.data.stream.loader import RowStream, fitting_workers, load_rows
from pipeline.data.stream.packing import Row
from pipeline.data.stream.strands import Reading
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.launch import Place, die_with_parent, take_place
from pipeline.training.engine import Engine
from pipeline.training.loop import Position, Step, train_steps
from pipeline.training.optimisation import Optimisation, decay_groups
from pipeline.world import World

RECIPE = Optimisation(3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, no_decay=("bias", "norm"), clip=1.0)


def whole_loss(states: torch.Tensor, head: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The summed loss of rows from the states (rows, T, width) behind the last norm: whole logits, in fp32."""
    logits = F.linear(states[:, :-1], head).float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def bare_steps(
    model: PreTrainedModel, batches: Iterator[list[torch.Tensor]], compiled: bool
) -> Iterator[tuple[float, float]]:
    """Train ``model`` (bf16) on one list of micro-batches for each step; yields loss and gradient norm."""
    model.train()
    loss_of = whole_loss
    if compiled:
        for part in (*model.model.layers, model.model.norm):
            part.compile(dynamic=False)
        loss_of = torch.compile(whole_loss, dynamic=False)
    weights = list(model.parameters())
    masters = {weight: nn.Parameter(weight.detach().float()) for weight in weights}
    groups = [
        {**group, "params": [masters[weight] for weight in group["params"]]}
        for group in decay_groups(model, RECIPE.weight_decay, RECIPE.no_decay)
    ]
    device = weights[0].device
    optimizer = torch.optim.AdamW(groups, lr=RECIPE.learning_rate, betas=RECIPE.betas, eps=RECIPE.eps, fused=True)
    for micro_batches in batches:
        targets = sum(batch[:, 1:].numel() for batch in micro_batches)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for batch in micro_batches:
            ids = batch.to(device, non_blocking=True)
            loss = loss_of(model.model(ids, use_cache=False).last_hidden_state, model.lm_head.weight, ids)
            (loss / targets).backward()
            total += loss.detach().double()
            for weight in weights:
                if masters[weight].grad is None:
                    masters[weight].grad = weight.grad.float()
                else:
                    masters[weight].grad += weight.grad
                weight.grad = None
        norm = nn.utils.clip_grad_norm_(masters.values(), RECIPE.clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for weight in weights:
                weight.copy_(masters[weight])
        yield total.item() / targets, norm.item()


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="The train stage's loop against a bare torch loop.")
    parser.add_argument("--model", type=Path, default=Path(".cache/demo/model"), help="folder: config and tokenizer")
    parser.add_argument("--text", type=Path, default=Path(".cache/demo/text/train"), help="shards to train on")
    parser.add_argument("--separator", default="<|endoftext|>", help="token behind each document, or eos")
    parser.add_argument("--blocks", type=int, default=21)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--row-length", type=int, default=256)
    parser.add_argument("--lanes", type=int, default=12)
    parser.add_argument("--workers", type=int, default=0, help="reader processes; 0 as in the demo")
    parser.add_argument("--zero-stage", type=int, default=1, choices=[1, 2, 3])
    parser.add_argument("--vicuna", type=int, metavar="WIDTH", help="Vicuna-7B's blocks, so wide, on random tokens")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of both")
    parser.add_argument("--turns", type=int, default=5, help="turns of each loop")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the figures."""
    arguments = read_arguments()
    take_place(Place())
    world = one_world()
    if world.device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    bare_model = new_model(arguments, world.device)
    loops = {"ours": our_loop(arguments, world), "bare": bare_loop(arguments, bare_model)}
    done, seconds = take_turns(loops, arguments.turns, arguments.steps, world.device)
    figures = figures_of(arguments, bare_model.num_parameters(), done, seconds)
    tell(arguments, world.device, figures)
    world.close()


def new_model(arguments: argparse.Namespace, device: torch.device) -> PreTrainedModel:
    """A bf16 model of the shape that is asked for, from the seed of all of them."""
    if arguments.vicuna:
        config = vicuna(arguments.blocks, arguments.vicuna)
    else:
        config = AutoConfig.from_pretrained(arguments.model)
        config.num_hidden_layers = arguments.blocks
    torch.manual_seed(0)
    return random_model(config, device, torch.bfloat16)


def read_rows(arguments: argparse.Namespace, workers: int) -> Iterator[Row]:
    """The rows of the text, as the train stage reads them; of random tokens, where no text is read."""
    if arguments.vicuna:
        return random_rows(vicuna().vocab_size, arguments.row_length, 0)
    shards = list_source(TextSource(str(arguments.text))).shards
    encode = make_encoder(load_tokenizer(arguments.model), arguments.separator)
    reading = Reading(encode, arguments.row_length, seed=0, cache=ShardCache(arguments.text))
    stream = RowStream(shards, reading, lanes=arguments.lanes)
    return load_rows(stream, fitting_workers(workers, arguments.lanes, 1), die_with_parent)


def steps_of(arguments: argparse.Namespace) -> int:
    """Steps of each loop: those of all turns, after one that is not timed."""
    return 1 + arguments.turns * arguments.steps


def bare_loop(arguments: argparse.Namespace, model: PreTrainedModel) -> Iterator[tuple[float, float]]:
    """The bare loop, on rows that are tokenized now."""
    micro_batch, accumulation = arguments.micro_batch, arguments.accumulation
    rows = islice(read_rows(arguments, 0), steps_of(arguments) * accumulation * micro_batch)
    ready = torch.stack([torch.from_numpy(row.input_ids) for row in rows])
    batches = (list(step.split(micro_batch)) for step in ready.split(accumulation * micro_batch))
    return bare_steps(model, batches, arguments.compile)


def our_loop(arguments: argparse.Namespace, world: World) -> Iterator[Step]:
    """The train stage's engine and loop, on rows that are read as it goes."""
    engine = Engine(
        new_model(arguments, world.device),
        world,
        RECIPE,
        micro_batch=arguments.micro_batch,
        accumulation=arguments.accumulation,
        zero_stage=arguments.zero_stage,
        compile_blocks=arguments.compile,
    )
    rows = read_rows(arguments, arguments.workers)
    steps = steps_of(arguments)
    return train_steps(engine, rows, Position(), steps=steps, rate=lambda step: RECIPE.learning_rate)


def take_turns(
    loops: dict[str, Iterator[Any]], turns: int, steps: int, device: torch.device
) -> tuple[dict[str, list[Any]], dict[str, list[float]]]:
    """What the steps of each loop gave, and the seconds of a step in each of its turns."""

    def turn(loop: Iterator[Any], count: int) -> tuple[list[Any], float]:
        wait_for(device)
        begin = perf_counter()
        done = list(islice(loop, count))
        wait_for(device)
        return done, (perf_counter() - begin) / count

    # The first step of each makes its optimizer's state and is not timed.
    done = {name: turn(loop, 1)[0] for name, loop in loops.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(turns):
        for name, loop in loops.items():
            taken = turn(loop, steps)
            done[name] += taken[0]
            seconds[name].append(taken[1])
    return done, seconds


def figures_of(
    arguments: argparse.Namespace, parameters: int, done: dict[str, list[Any]], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """What was asked for and what was measured, by name."""
    pairs = list(zip(done["ours"], done["bare"], strict=True))
    middle = {name: median(times) for name, times in seconds.items()}
    return {
        "blocks": arguments.blocks,
        "parameters": parameters,
        "row_length": arguments.row_length,
        "micro_batch": arguments.micro_batch,
        "accumulation": arguments.accumulation,
        "zero_stage": arguments.zero_stage,
        "workers": arguments.workers,
        "compiled": arguments.compile,
        "timed_steps": steps_of(arguments) - 1,
        "seconds_per_step": middle,
        "overhead": middle["ours"] / middle["bare"] - 1,
        "data_wait": median(step.data_wait for step in done["ours"][1:]),
        "losses": [step.loss for step in done["ours"]],
        "largest_loss_difference": max(abs(step.loss - loss) for step, (loss, _) in pairs),
        "largest_norm_difference": max(abs(step.grad_norm - norm) / norm for step, (_, norm) in pairs),
    }


def tell(arguments: argparse.Namespace, device: torch.device, figures: dict[str, Any]) -> None:
    """Print the figures."""
    middle = figures["seconds_per_step"]
    show(
        device,
        figures,
        {
            "Model": f"{arguments.blocks} blocks, {figures['parameters'] / 1e6:.0f}M parameters, bf16",
            "Blocks": "compiled" if arguments.compile else "as they are",
            "Rows": f"{arguments.micro_batch} x {arguments.accumulation} of {arguments.row_length}",
            "ZeRO": str(arguments.zero_stage),
            "Ours": f"{1 / middle['ours']:.4g} steps/s",
            "Bare": f"{1 / middle['bare']:.4g} steps/s",
            "Overhead": f"{figures['overhead']:+.1%}",
            "Waiting for data": f"{figures['data_wait'] / middle['ours']:.1%}",
            "Largest difference of a loss": f"{figures['largest_loss_difference']:.1e} nats",
        },
    )


if __name__ == "__main__":
    main()
