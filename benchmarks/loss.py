"""Head and loss, forward and backward, made in several ways: seconds and memory by vocabulary.

    python benchmarks/loss.py                                             # on a GPU: 16,384 tokens of width 4,096
    python benchmarks/loss.py --tokens 1024 --width 576 --vocabularies 49152 151936

Each way runs in a process of its own. Memory is the most that it took above weights and states: on a GPU of tensors, on
a CPU of the whole process. Ways: ``whole``, logits of all tokens in fp32; the same compiled; ``deepspeed``, its chunked
cross-entropy on whole logits in bf16; ``liger``, its fused linear cross-entropy (on a GPU, where it is installed); and
``ours``, pipeline/model/head.py, as it is and compiled.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from machine import peak_memory, show, wait_for
from torch import nn

from pipeline.model.head import Head, losses_at, with_gradient

States = torch.Tensor


def whole(head: nn.Linear, states: States, targets: torch.Tensor) -> torch.Tensor:
    """From the logits of all tokens."""
    return F.cross_entropy(head(states).float(), targets, reduction="sum")


def by_deepspeed(head: nn.Linear, states: States, targets: torch.Tensor) -> torch.Tensor:
    """By DeepSpeed's chunks of whole bf16 logits."""
    from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy

    return chunked_cross_entropy(head(states), targets, reduction="sum")


def by_liger(head: nn.Linear, states: States, targets: torch.Tensor) -> torch.Tensor:
    """By Liger Kernel."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, states, targets)


def ours(head: nn.Linear, states: States, targets: torch.Tensor, judge: Callable[..., Any] = with_gradient) -> Any:
    """In chunks whose gradients are made in the forward pass."""
    with losses_at(Head(head, judge=judge), targets) as taken:
        head(states)
    return taken.objective


def ways() -> dict[str, Callable[..., torch.Tensor]]:
    """By name."""
    judge = torch.compile(with_gradient, dynamic=False)
    found = {
        "whole": whole,
        "whole, compiled": torch.compile(whole, dynamic=False),
        "deepspeed": by_deepspeed,
        "liger": by_liger,
        "ours": ours,
        "ours, compiled": lambda *arguments: ours(*arguments, judge),
    }
    if not (torch.cuda.is_available() and find_spec("liger_kernel")):
        del found["liger"]
    return found


def measure(arguments: argparse.Namespace, way: str, vocabulary: int) -> dict[str, float]:
    """One way, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        head = nn.Linear(arguments.width, vocabulary, bias=False, dtype=torch.bfloat16)
        states = torch.randn(arguments.tokens, arguments.width, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.randint(vocabulary, (arguments.tokens,))
    loss_of, seconds, before = ways()[way], [], peak_memory(device)
    for _ in range(1 + arguments.repeats):
        head.weight.grad = states.grad = None
        wait_for(device)
        begin = perf_counter()
        loss = loss_of(head, states, targets)
        loss.backward()
        wait_for(device)
        seconds.append(perf_counter() - begin)
    norm = float(head.weight.grad.float().norm())
    return {
        "loss": float(loss) / arguments.tokens,
        "gradient_norm": norm,
        "seconds": median(seconds[1:]),
        "bytes": peak_memory(device) - before,
    }


def apart(arguments: argparse.Namespace, way: str, vocabulary: int) -> dict[str, float] | None:
    """One way, in a process of its own; None where it failed, which it has said."""
    shape = ["--tokens", arguments.tokens, "--width", arguments.width, "--repeats", arguments.repeats]
    options = [*map(str, shape), "--way", way, "--vocabularies", str(vocabulary)]
    done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description="Head and loss in several ways.")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32000, 151936])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--way", help="this one, here, and its figures as JSON")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments, arguments.way, arguments.vocabularies[0])))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for vocabulary in arguments.vocabularies:
        found = {way: apart(arguments, way, vocabulary) for way in ways()}
        cells = {
            way: "failed" if one is None else f"{1e3 * one['seconds']:,.1f} ms, {one['bytes'] / 1e9:.2f} GB"
            for way, one in found.items()
        }
        shape = f"{arguments.tokens:,} x {arguments.width:,} x {vocabulary:,}"
        figures = {"tokens": arguments.tokens, "width": arguments.width, "vocabulary": vocabulary, "ways": found}
        show(device, figures, {"Tokens x width x vocabulary": shape, **cells})


if __name__ == "__main__":
    main()
