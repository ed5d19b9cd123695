"""How much faster the sweep scores all blocks than the same model run once for each block left out.

    python benchmarks/scoring.py                        # SmolLM2-135M, 10 sequences of 128 tokens of the demo's text
    python benchmarks/scoring.py --shape 7b --repeats 1   # random weights; needs a GPU of 80 GB

The sweep runs as the score stage runs it, one sequence at a time. The baseline is the faster of two: skipping one
block at a time for one sequence at a time, and for all sequences in one forward. The three take turns in one run, so
that a machine that slows down slows all of them, and the median of each is compared.

The ratio expected from operations alone: with L equal blocks of b parameters and a head of h, the baseline's L + 1
forwards cost L (L - 1) b + L b + (L + 1) h for each token, the sweep (1 + 2 + ... + L) b + (L + 1) h. Large blocks
bring it near 2; a large head holds it down. Attention's products and the softmax are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from machine import show, wait_for
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline.data.listing import list_source
from pipeline.data.samples import calibration_sequences
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.importance.sweep import removal_losses
from pipeline.model.blocks import block_parameters, skip_blocks
from pipeline.model.costs import meta_model
from pipeline.model.load import load_model
from pipeline.model.loss import next_token_losses

SHAPE_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
            "vocab_size": 32000}  # fmt: skip


def predicted_ratio(blocks: int, block: int, head: int) -> float:
    """Operations of the baseline over those of the sweep, from parameters of a block and of the head."""
    heads = (blocks + 1) * head
    return (blocks * (blocks - 1) * block + blocks * block + heads) / (blocks * (blocks + 1) / 2 * block + heads)


def prediction_for(model: Any) -> float:
    """``predicted_ratio`` of a model whose blocks are equal."""
    sizes = block_parameters(model)
    return predicted_ratio(len(sizes), sizes[0], model.get_output_embeddings().weight.numel())


def sweep(model: Any, sequences: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Summed losses (blocks + 1, sequences) by the sweep, one sequence at a time, and seconds."""
    begin = _clock(model)
    losses = torch.cat([removal_losses(model, row[None]) for row in sequences], dim=1)
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
            rows.append(torch.cat([
                next_token_losses(model(batch, use_cache=False).logits, batch).double().sum(dim=1).cpu()
                for batch in sequences.split(together)
            ]))  # fmt: skip
            seconds += _clock(model) - begin
    return torch.stack(rows), seconds


def _clock(model: Any) -> float:
    wait_for(model.device)
    return perf_counter()


def measure(model: Any, sequences: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Median seconds of the three ways, the ratio, and the largest difference of a sequence's mean token loss."""
    ways: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, float]]] = {
        "sweep": lambda batch: sweep(model, batch),
        "one_sequence": lambda batch: one_at_a_time(model, batch, 1),
        "all_sequences": lambda batch: one_at_a_time(model, batch, len(batch)),
    }
    for way in ways.values():
        way(sequences[:1])  # warms the kernels up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses = {}
    for _ in range(repeats):
        for name, way in ways.items():
            losses[name], taken = way(sequences)
            seconds[name].append(taken)
    middle = {name: median(times) for name, times in seconds.items()}
    targets = sequences.shape[1] - 1
    return {
        "sequences": len(sequences), "length": sequences.shape[1], "repeats": repeats, "seconds": middle,
        "ratio": min(middle["one_sequence"], middle["all_sequences"]) / middle["sweep"],
        "largest_difference": (losses["sweep"] - losses["one_sequence"]).abs().max().item() / targets,
    }  # fmt: skip


def main() -> None:
    """Measure, and print the figures beside the prediction."""
    parser = argparse.ArgumentParser(description="The sweep against leaving out one block at a time.")
    parser.add_argument("--model", type=Path, default=Path(".cache/demo/model"), help="a Hugging Face folder")
    parser.add_argument("--text", type=Path, default=Path(".cache/demo/text/train"), help="shards to draw from")
    parser.add_argument("--shape", choices=["7b"], help="random weights of this shape and random tokens instead")
    parser.add_argument("--sequences", type=int, help="default: 10; with --shape 7b also 64")
    parser.add_argument("--length", type=int, help="tokens in a sequence; default: 128; with --shape 7b also 2048")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)

    sizes = [(10, 128), (64, 2048)] if arguments.shape else [(10, 128)]
    if arguments.sequences or arguments.length:
        sizes = [(arguments.sequences or 10, arguments.length or 128)]
    if arguments.shape:
        with device:
            model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE_7B), dtype=dtype).eval()
        batches = [torch.randint(SHAPE_7B["vocab_size"], size) for size in sizes]
    else:
        model = load_model(arguments.model, dtype=dtype, attention="sdpa", device=device)
        encode = make_encoder(load_tokenizer(arguments.model))
        shards = list_source(str(arguments.text)).shards
        batches = [
            calibration_sequences(shards, encode, sequences=sequences, length=length, bos="document", seed=1234,
                                  cache=arguments.text)[0]
            for sequences, length in sizes
        ]  # fmt: skip

    name = arguments.shape or arguments.model.name
    expected = prediction_for(model)
    expected_7b = prediction_for(meta_model(LlamaConfig(**SHAPE_7B)))
    print(f"expected from operations: {expected:.2f} for this model, {expected_7b:.2f} for a model of 7B")
    for batch in batches:
        figures = measure(model, batch.to(device), arguments.repeats)
        figures = {"model": name, "blocks": model.config.num_hidden_layers, "dtype": arguments.dtype, **figures,
                   "predicted_ratio": expected, "predicted_ratio_7b": expected_7b}  # fmt: skip
        times = figures["seconds"]
        show(device, figures, {
            "Model": f"{name}, {figures['blocks']} blocks, {arguments.dtype}",
            "Sequences": f"{figures['sequences']} x {figures['length']}",
            "Sweep": f"{times['sweep']:.2f} s",
            "One block, one sequence at a time": f"{times['one_sequence']:.2f} s",
            "One block at a time, all sequences": f"{times['all_sequences']:.2f} s",
            "Ratio": f"{figures['ratio']:.2f}",
            "Expected": f"{expected:.2f}",
            "Largest difference of a loss": f"{figures['largest_difference']:.1e} nats",
        })  # fmt: skip


if __name__ == "__main__":
    main()
