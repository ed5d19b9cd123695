"""What scoring all blocks costs: the sweep, what rides along with it, and the same without it.

    python benchmarks/scoring.py                        # SmolLM2-135M, 10 sequences of 128 tokens of the demo's text
    python benchmarks/scoring.py --shape 7b --repeats 1   # random weights; needs a GPU of 80 GB

Measured are (a) the sweep with PPL alone, (b) the sweep with PPL and all distances, (c) linear replacement, on as many
sequences as its fit asks for, (d) skipping one block at a time: the faster of one sequence at a time and of many in one
forward, and (e) on a CPU the sweep in one process and in two, each with one thread and one core. (a), (b) and (d) take
turns in one run, so that a machine that slows down slows all of them, and the median of each is compared. The bars:
(b) at most 1.5 times (a), (a) at most 0.75 times (d), two processes at least 1.6 times as fast as one.

The ratio of (d) to (a) expected from operations alone: with L equal blocks of b parameters and a head of h, the L + 1
forwards of (d) cost L (L - 1) b + L b + (L + 1) h for each token, the sweep (1 + 2 + ... + L) b + (L + 1) h. Large
blocks bring it near 2; a large head holds it down. Attention's products and the softmax are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from machine import peak_memory, show, wait_for
from scoring_processes import one_and_two_processes
from shapes import random_model, vicuna

from pipeline.data.corpus.calibration import calibration_sequences
from pipeline.data.corpus.listing import list_source
from pipeline.data.sources import TextSource
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.importance.distances import StateDistances
from pipeline.importance.linear import linear_entry, sequences_for_maps, split_for_maps
from pipeline.importance.sweep import removal_losses
from pipeline.model.blocks import block_parameters, skip_blocks
from pipeline.model.costs import meta_model
from pipeline.model.load import load_model
from pipeline.model.loss import next_token_losses

#: Blocks and width of what has random weights.
SHAPES = {"7b": (32, 4096), "tiny": (4, 128)}
#: (b) / (a) and (a) / (d) at most, one process / two processes at least.
BARS = {"distances": 1.5, "sweep": 0.75, "processes": 1.6}
#: Tokens in one forward of (d) where many sequences go together: the logits of more would not fit beside a 7B.
TOGETHER = 2**14


def predicted_ratio(blocks: int, block: int, head: int) -> float:
    """Operations of the baseline over those of the sweep, from parameters of a block and of the head."""
    heads = (blocks + 1) * head
    return (blocks * (blocks - 1) * block + blocks * block + heads) / (blocks * (blocks + 1) / 2 * block + heads)


def prediction_for(model: Any) -> float:
    """``predicted_ratio`` of a model whose blocks are equal."""
    sizes = block_parameters(model)
    return predicted_ratio(len(sizes), sizes[0], model.get_output_embeddings().weight.numel())


def sweep(model: Any, sequences: torch.Tensor, distances: bool = False) -> tuple[torch.Tensor, float]:
    """Summed losses (blocks + 1, sequences) by the sweep, one sequence at a time, and seconds; maybe with distances."""
    begin = _clock(model)
    watch = StateDistances(len(block_parameters(model))) if distances else None
    losses = torch.cat([removal_losses(model, row[None], watch=watch) for row in sequences], dim=1)
    if watch is not None:
        watch.entries()
    return losses, _clock(model) - begin


@torch.no_grad()
def one_at_a_time(model: Any, sequences: torch.Tensor, together: int) -> tuple[torch.Tensor, float]:
    """The same losses, leaving out one block at a time, ``together`` sequences in a forward, and seconds."""
    removals = [[index] for index in range(len(block_parameters(model)))]
    rows, seconds = [], 0.0
    for removed in [*removals, []]:
        # To leave a block out costs a forward of one token: that is not counted against the baseline.
        with skip_blocks(model, removed):
            begin = _clock(model)
            rows.append(
                torch.cat(
                    [
                        next_token_losses(model(batch, use_cache=False).logits, batch).double().sum(dim=1).cpu()
                        for batch in sequences.split(together)
                    ]
                )
            )
            seconds += _clock(model) - begin
    return torch.stack(rows), seconds


def _clock(model: Any) -> float:
    wait_for(model.device)
    return perf_counter()


def measure(model: Any, sequences: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Median seconds of (a), (b) and both forms of (d), their ratios, peak memory, and how far the losses differ."""
    together = max(1, min(len(sequences), TOGETHER // sequences.shape[1]))
    ways: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, float]]] = {
        "sweep": lambda batch: sweep(model, batch),
        "with_distances": lambda batch: sweep(model, batch, distances=True),
        "one_sequence": lambda batch: one_at_a_time(model, batch, 1),
        "all_sequences": lambda batch: one_at_a_time(model, batch, together),
    }
    for way in ways.values():
        way(sequences[:1])  # warms the kernels up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses, peaks = {}, {}
    for _ in range(repeats):
        for name, way in ways.items():
            if model.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(model.device)
            losses[name], taken = way(sequences)
            seconds[name].append(taken)
            peaks[name] = peak_memory(model.device)
    middle = {name: median(times) for name, times in seconds.items()}
    distances = middle.pop("with_distances")
    skipping = min(middle["one_sequence"], middle["all_sequences"])
    targets = sequences.shape[1] - 1
    return {
        "sequences": len(sequences),
        "length": sequences.shape[1],
        "repeats": repeats,
        "seconds": middle,
        "ratio": skipping / middle["sweep"],
        "sweep_of_skipping": middle["sweep"] / skipping,
        "with_distances": {"seconds": distances, "ratio": distances / middle["sweep"]},
        "peak_memory": peaks,
        "largest_difference": (losses["sweep"] - losses["one_sequence"]).abs().max().item() / targets,
    }


def measure_linear(model: Any, sequences: torch.Tensor) -> dict[str, Any]:
    """Seconds of the linear criterion for every block, once, and the tokens that it went over."""
    begin = _clock(model)
    linear_entry(model, *split_for_maps(sequences, 1))
    return {"seconds": _clock(model) - begin, "sequences": len(sequences), "tokens": sequences.numel()}


def draw(arguments: argparse.Namespace, sequences: int, length: int) -> torch.Tensor:
    """Sequences (sequences, length) int64 of the text, or of random tokens where there is no tokenizer."""
    if arguments.shape:
        return torch.randint(vicuna().vocab_size, (sequences, length))
    encode = make_encoder(load_tokenizer(arguments.model))
    shards = list_source(TextSource(str(arguments.text))).shards
    return calibration_sequences(
        shards, encode, sequences=sequences, length=length, bos="document", seed=1234, cache=arguments.text
    )[0]


def main() -> None:
    """Measure, and print the figures beside the bars and the prediction."""
    parser = argparse.ArgumentParser(description="What scoring all blocks costs, against skipping one at a time.")
    parser.add_argument("--model", type=Path, default=Path(".cache/demo/model"), help="a Hugging Face folder")
    parser.add_argument("--text", type=Path, default=Path(".cache/demo/text/train"), help="shards to draw from")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights of this shape, random tokens")
    parser.add_argument("--sequences", type=int, help="default: 10; with --shape 7b also 64")
    parser.add_argument("--length", type=int, help="tokens in a sequence; default: 128; with --shape 7b also 2048")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--linear", action=argparse.BooleanOptionalAction, default=True, help="linear replacement too")
    parser.add_argument("--quick", action="store_true", help="3 sequences of 32 tokens, once: to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sequences, arguments.length, arguments.repeats = 3, 32, 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)

    sizes = [(10, 128), (64, 2048)] if arguments.shape else [(10, 128)]
    if arguments.sequences or arguments.length:
        sizes = [(arguments.sequences or 10, arguments.length or 128)]
    if arguments.shape:
        model = random_model(vicuna(*SHAPES[arguments.shape]), device, dtype).eval()
    else:
        model = load_model(arguments.model, dtype=dtype, attention="sdpa", device=device)

    name = arguments.shape or arguments.model.name
    expected = prediction_for(model)
    expected_7b = prediction_for(meta_model(vicuna()))
    print(f"expected from operations: {expected:.2f} for this model, {expected_7b:.2f} for a model of 7B")
    for sequences, length in sizes:
        batch = draw(arguments, sequences, length).to(device)
        figures = measure(model, batch, arguments.repeats)
        linear = None
        if arguments.linear:
            needed = sequences_for_maps(model.config.hidden_size, length)
            linear = measure_linear(model, draw(arguments, needed, length).to(device))
        processes = None
        if device.type == "cpu" and not arguments.shape:
            processes = one_and_two_processes(arguments.model, arguments.dtype, batch, arguments.repeats)
        figures = {
            "model": name,
            "blocks": model.config.num_hidden_layers,
            "dtype": arguments.dtype,
            **figures,
            "linear": linear,
            "processes": processes,
            "bars": BARS,
            "predicted_ratio": expected,
            "predicted_ratio_7b": expected_7b,
        }
        report(device, figures)


def report(device: torch.device, figures: dict[str, Any]) -> None:
    """Print each figure that has a bar beside it, and then all of them."""
    times, distances, linear, processes = (figures[key] for key in ("seconds", "with_distances", "linear", "processes"))
    print(
        f"PPL and all distances take {distances['ratio']:.2f} times PPL alone; the bar is {BARS['distances']} at most"
    )
    print(f"the sweep takes {figures['sweep_of_skipping']:.2f} of skipping; the bar is {BARS['sweep']} at most")
    if processes is not None:
        print(f"2 processes are {processes['speedup']:.2f} times as fast; the bar is {BARS['processes']} at least")
    show(
        device,
        figures,
        {
            "Model": f"{figures['model']}, {figures['blocks']} blocks, {figures['dtype']}",
            "Sequences": f"{figures['sequences']} x {figures['length']}",
            "Sweep": f"{times['sweep']:.2f} s",
            "With all distances": f"{distances['seconds']:.2f} s ({distances['ratio']:.2f} x)",
            "Linear replacement": "not measured"
            if linear is None
            else f"{linear['seconds']:.2f} s for {linear['tokens']:,} tokens",
            "One block, one sequence at a time": f"{times['one_sequence']:.2f} s",
            "One block at a time, many sequences": f"{times['all_sequences']:.2f} s",
            "Ratio": f"{figures['ratio']:.2f}",
            "Expected": f"{figures['predicted_ratio']:.2f}",
            "Peak memory": f"{figures['peak_memory']['sweep'] / 1e9:.1f} GB",
            "1 process, 2 processes": "not measured"
            if processes is None
            else f"{processes['one']:.2f} s, {processes['two']:.2f} s ({processes['speedup']:.2f} x)",
            "Largest difference of a loss": f"{figures['largest_difference']:.1e} nats",
        },
    )


if __name__ == "__main__":
    main()
