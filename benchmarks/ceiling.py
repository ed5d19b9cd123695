"""What a device can do at most: bf16 matrix products of the pruned 7B shapes, and copies within its memory.

    python benchmarks/ceiling.py            # seconds on a GPU
    python benchmarks/ceiling.py --quick    # every dimension a sixteenth: to see that it runs

A product is that of a linear layer, rows x inner by inner x columns with the weight transposed, on random numbers (a
GPU is faster on zeros). The ceiling is all products' operations over the sum of their times, so that it can be set
beside what a training step reaches: no step of these products in bf16 can be faster. Each time is the median of rounds
that last some 50 ms, which leaves the waiting for the device out. A copy counts bytes read and bytes written.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from machine import show, wait_for

from pipeline.model.costs import peak_flops

#: Rows, inner, columns: two rows of 2,048 tokens through the projections of attention, the MLP up and down, the head;
#: eight rows through the MLP; and a square that leaves no shape to blame.
PRODUCTS = (
    (4096, 4096, 4096),
    (4096, 4096, 11008),
    (4096, 11008, 4096),
    (4096, 4096, 32000),
    (16384, 4096, 11008),
    (8192, 8192, 8192),
)
COPIED = 4 * 2**30
ROUNDS, ROUND_SECONDS = 15, 0.05


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call of ``action``: the median of rounds, each of as many calls as fill its time."""

    def time(calls: int) -> float:
        wait_for(device)
        begin = perf_counter()
        for _ in range(calls):
            action()
        wait_for(device)
        return (perf_counter() - begin) / calls

    time(3)  # warms up: libraries load, kernels are chosen
    calls = math.ceil(ROUND_SECONDS / time(1))
    return median(time(calls) for _ in range(ROUNDS))


def time_product(rows: int, inner: int, columns: int, device: torch.device) -> float:
    """Seconds of one bf16 product."""
    states = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    weight = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
    out = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)
    return seconds_of(lambda: torch.mm(states, weight.t(), out=out), device)


def time_copy(size: int, device: torch.device) -> float:
    """Seconds of copying ``size`` bytes."""
    source = torch.randint(256, (size,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return seconds_of(lambda: target.copy_(source), device)


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description="The ceiling of a device: bf16 matrix products and copies.")
    parser.add_argument("--quick", action="store_true", help="every dimension a sixteenth: to see that it runs")
    scale = 16 if parser.parse_args().quick else 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    speeds, operations, seconds = {}, 0, 0.0
    for product in PRODUCTS:
        rows, inner, columns = (size // scale for size in product)
        taken = time_product(rows, inner, columns, device)
        speeds[f"{rows} x {inner} x {columns}"] = 2 * rows * inner * columns / taken
        operations, seconds = operations + 2 * rows * inner * columns, seconds + taken
        print(f"{rows} x {inner} x {columns}: {taken * 1e3:.3f} ms", flush=True)
    ceiling = operations / seconds
    copied = COPIED // scale**2
    bandwidth = 2 * copied / time_copy(copied, device)
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    of_peak = ceiling / peak if peak else None
    figures = {
        "products": speeds,
        "ceiling": ceiling,
        "peak_flops": peak,
        "of_peak": of_peak,
        "copied_bytes": copied,
        "copy_bytes_per_second": bandwidth,
    }
    show(
        device,
        figures,
        {
            **{name: f"{speed / 1e12:.3g} TFLOP/s" for name, speed in speeds.items()},
            "Ceiling": f"{ceiling / 1e12:.3g} TFLOP/s",
            "Of the peak": "unknown peak" if of_peak is None else f"{of_peak:.1%}",
            "Copy": f"{bandwidth / 1e12:.3g} TB/s",
        },
    )


if __name__ == "__main__":
    main()
