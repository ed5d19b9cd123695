"""Measurements for one GPU, one after the other, within a number of minutes: what benchmarks/gpu.sh runs.

Each item is a process of its own. It is started only if it would end in time, by what it is known to take; it is
stopped at twice that, or when the minutes are over; and whatever becomes of it, the next one gets its turn. Items
print their figures as a line of JSON and a row for benchmarks/RESULTS.md, which are printed once more at the end.
To add a measurement: a script that prints with ``machine.show``, and a row of ``ITEMS``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from commands import carry_out

from pipeline.interrupt import interruptible

ROOT = Path(__file__).parent.parent
#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130
Figures = dict[str, Any]


class Call(NamedTuple):
    """A script's options, and the seconds that it takes with them: on an H100, or on two cores for a quick run."""

    seconds: float
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """A measurement: its script, how it is called in full and in small, and what its figures come to in words.

    ``takes`` are options whose value is a figure of an earlier item (option, item, figure): without it, the option is
    not given. ``lacking`` says what is not here without which there is nothing to measure, "" where all is. ``part``:
    of a call of so many minutes.
    """

    name: str
    script: str
    figure: Callable[[Figures], str]
    full: Call
    quick: Call
    takes: tuple[tuple[str, str, str], ...] = ()
    lacking: Callable[[Path], str] = lambda root: ""
    part: int = 1


def _no_demo(root: Path) -> str:
    assets = ".cache/demo/assets.json"
    return "" if (root / assets).exists() else f"there is no {assets}"


def _no_flash_attention(root: Path) -> str:
    return "" if find_spec("flash_attn") else "flash-attn is not installed"


def _below_100_gb(root: Path) -> str:
    if not torch.cuda.is_available():
        return ""
    size = torch.cuda.get_device_properties(0).total_memory / 1e9
    return "" if size > 100 else f"it needs more than the {size:.0f} GB of this GPU"


def _speed(figures: Figures) -> str:
    shares = [
        f"{figures[key]:.1%} {words}"
        for key, words in (("mfu", "MFU"), ("of_ceiling", "of the ceiling"))
        if figures[key] is not None
    ]
    return ", ".join([f"{figures['tokens_per_second']:,.0f} tokens/s", *shares])


def _ceiling(figures: Figures) -> str:
    return f"{figures['ceiling'] / 1e12:.3g} TFLOP/s, copy {figures['copy_bytes_per_second'] / 1e12:.3g} TB/s"


def _scoring(figures: Figures) -> str:
    taken, memory = figures["with_distances"]["seconds"], figures["peak_memory"]["with_distances"]
    return f"PPL and all distances {taken:.2f} s, {memory / 1e9:.1f} GB"


def _demo(figures: Figures) -> str:
    return f"killed after step {figures['killed_after']}: {'same bytes' if figures['same'] else 'OTHER BYTES'}"


def _tests(figures: Figures) -> str:
    return f"{figures['passed']} passed, {figures['failed']} failed, {figures['skipped']} skipped"


def _loss(figures: Figures) -> str:
    ways = {way: one for way, one in figures["ways"].items() if one}
    return ", ".join(f"{way} {1e3 * one['seconds']:.1f} ms {one['bytes'] / 1e9:.1f} GB" for way, one in ways.items())


def _overhead(figures: Figures) -> str:
    return f"{figures['overhead']:+.1%} over the bare loop"


def _training(name: str, seconds: float, blocks: int, *options: str, quick: Sequence[str] = (), **more: Any) -> Item:
    """A rung of the ladder: 32 rows of 2,048 tokens a step, ``blocks`` of them as in a 7B."""
    small = ("--blocks", str(min(blocks, 2)), *_SMALL, *quick)
    full = ("--blocks", str(blocks), *options)
    return Item(name, "throughput.py", _speed, Call(seconds, full), Call(15, small), _TAKES, **more)


_SMALL = ("--width", "64", "--row-length", "64", "--micro-batch", "2", "--accumulation", "2", "--steps", "2")
_TAKES = (("--ceiling", "ceiling", "ceiling"),)
_SEQUENCES = ("--sequences", "10", "--length", "128", "--repeats", "1", "--no-linear")
_TWO, _FOUR, _EIGHT = (("--micro-batch", str(rows), "--accumulation", str(32 // rows)) for rows in (2, 4, 8))
_HOST = ("--width", "512", "--row-length", "512", "--micro-batch", "32", "--accumulation", "2")
_RECOMPUTING = ("--gradient-checkpointing", "selective")
_FLASH = ("--attention", "flash_attention_2")
_VICUNA = ("--compile", "--vicuna", "4096", "--blocks", "6", "--row-length", "2048", *_EIGHT, "--turns", "3")
_SMALL_VICUNA = ("--compile", "--vicuna", "64", "--blocks", "2", "--row-length", "64", "--turns", "1")
#: Most worth first: what training reaches by default, then what each part of it gives, then the rest.
ITEMS = (
    Item("ceiling", "ceiling.py", _ceiling, Call(20), Call(10, ("--quick",))),
    _training("1.5b", 40, 6, *_EIGHT, "--compile", quick=("--compile",)),
    _training("2.7b", 40, 12, *_FOUR, "--compile"),
    _training("3.7b", 45, 17, *_FOUR, *_RECOMPUTING, "--compile", quick=_RECOMPUTING),
    _training("5.5b", 50, 26, *_FOUR, *_RECOMPUTING, "--compile", quick=_RECOMPUTING, lacking=_below_100_gb),
    _training("1.5b-eager", 30, 6, *_EIGHT),
    _training("1.5b-whole", 30, 6, *_EIGHT, "--compile", "--whole-logits", quick=("--whole-logits",)),
    Item("overhead", "training.py", _overhead, Call(40, _VICUNA), Call(20, _SMALL_VICUNA)),
    _training("1.5b-two", 35, 6, *_TWO, "--compile"),
    Item("demo", "resume.py", _demo, Call(130), Call(60, ("--quick",)), lacking=_no_demo, part=2),
    Item("tests", "gpu_tests.py", _tests, Call(120), Call(15), part=2),
    Item(
        "scoring",
        "scoring.py",
        _scoring,
        Call(45, ("--shape", "7b", *_SEQUENCES)),
        Call(15, ("--shape", "tiny", "--quick", "--no-linear")),
        part=2,
    ),
    # The demo's size, where the host has the most to do for each of the chip's operations.
    _training("small", 30, 21, *_HOST, "--compile", part=2),
    _training("1.5b-recipe", 30, 6, *_TWO, "--whole-logits", quick=("--whole-logits",), part=2),
    Item(
        "loss",
        "loss.py",
        _loss,
        Call(75, ("--vocabularies", "32000", "--repeats", "3")),
        Call(60, ("--tokens", "64", "--width", "64", "--vocabularies", "512", "--repeats", "1")),
        part=3,
    ),
    _training("1.5b-flash", 40, 6, *_EIGHT, "--compile", *_FLASH, lacking=_no_flash_attention, part=3),
)


@dataclass(frozen=True)
class Outcome:
    """What became of an item: ``ok``, or why there is no figure; its seconds, figures, and row (heading, rule, row)."""

    item: Item
    call: Call
    status: str
    seconds: float = 0.0
    figures: Figures | None = None
    row: tuple[str, ...] = ()
    late: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ran and did not end well."""
        return self.seconds > 0 and self.status != "ok"


def measure(items: Sequence[Item], minutes: float, quick: bool = False, root: Path = ROOT) -> Iterator[Outcome]:
    """Carry out the items in their order and yield what became of each; none is running after ``minutes``.

    A time-out is twice an item's seconds (ten times for a quick run: it shares its CPU with others), and never more
    than the time that is left.
    """
    end, known = monotonic() + 60 * minutes, {}
    for item in items:
        call, left = item.quick if quick else item.full, end - monotonic()
        if lacking := item.lacking(root):
            yield Outcome(item, call, f"left out: {lacking}")
        elif call.seconds > left:
            wanting = f"left out: about {call.seconds:.0f} s, {max(0.0, left):.0f} s were left"
            yield Outcome(item, call, wanting, late=True)
        else:
            taken = [(option, str(known[name][key])) for option, name, key in item.takes if name in known]
            outcome = attempt(item, call, list(chain(*taken)), min(left, call.seconds * (10 if quick else 2)), root)
            if outcome.figures:
                known[item.name] = outcome.figures
            yield outcome


def attempt(item: Item, call: Call, more: list[str], limit: float, root: Path) -> Outcome:
    """Carry out one item, with ``more`` options, in at most ``limit`` seconds."""
    print(f"\ngpu: {item.name}: about {call.seconds:.0f} s, at most {limit:.0f} s", flush=True)
    ended = carry_out([sys.executable, str(root / "benchmarks" / item.script), *call.options, *more], root, limit)
    figures, row = shown(ended.lines)
    if ended.status is None:
        status = f"FAILED: stopped after {ended.seconds:.0f} s"
    elif ended.status:
        status = f"FAILED: exit status {ended.status}"
    else:
        status = "ok" if figures else "FAILED: printed no figures"
    return Outcome(item, call, status, ended.seconds, figures, row)


def shown(lines: Sequence[str]) -> tuple[Figures | None, tuple[str, ...]]:
    """The figures and the three lines of table that ``machine.show`` printed last; None and nothing without them."""
    for place in reversed(range(len(lines))):
        if lines[place].startswith("{") and '"hardware"' in lines[place]:
            return json.loads(lines[place]), tuple(lines[place + 1 : place + 4])
    return None, ()


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Every row once more, a table of what became of each item, and what was left out for time."""
    lines = []
    for outcome in outcomes:
        if outcome.row:
            lines += [f"{outcome.item.name}:", *outcome.row, ""]
    lines += ["| Item | Status | Seconds | Figure |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        figure = outcome.item.figure(outcome.figures) if outcome.figures else ""
        seconds = f"{outcome.seconds:.0f}" if outcome.seconds else ""
        lines.append(f"| {outcome.item.name} | {outcome.status} | {seconds} | {figure} |")
    late = [outcome for outcome in outcomes if outcome.late]
    if late:
        seconds = sum(outcome.call.seconds for outcome in late)
        names = " ".join(outcome.item.name for outcome in late)
        lines.append(
            f"left out for want of time; about {seconds:.0f} s more:  "
            f"bash benchmarks/gpu.sh --minutes {math.ceil(seconds / 60)} {names}"
        )
    return lines


def main() -> None:
    """Measure what was asked for, and print the summary, also of what a Ctrl-C cut short; exit 1 if an item failed."""
    names = [item.name for item in ITEMS]
    parser = argparse.ArgumentParser(prog="gpu.sh", description="Measurements for one GPU, in minutes.")
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"of {', '.join(names)}; default: all of the part")
    parser.add_argument(
        "--part",
        type=int,
        default=1,
        choices=[1, 2, 3],
        help="1: training; 2: tests, a kill, scoring; 3: losses, attention; default 1",
    )
    parser.add_argument("--minutes", type=float, default=6, help="start nothing that would not end by then; default 6")
    parser.add_argument("--quick", action="store_true", help="all of it with small shapes, on a CPU as well")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.items if name not in names]
    if unknown:
        parser.error(f"no item {unknown[0]!r}; there are {', '.join(names)}")
    if arguments.minutes <= 0:
        parser.error("--minutes must be above 0")
    if not arguments.quick and not torch.cuda.is_available():
        sys.exit("gpu: torch sees no NVIDIA GPU here; --quick runs all of it in small on a CPU")
    wanted = arguments.items or [item.name for item in ITEMS if item.part == arguments.part]
    chosen = [item for item in ITEMS if item.name in wanted]
    outcomes, status = [], 0
    try:
        with interruptible():
            for outcome in measure(chosen, arguments.minutes, arguments.quick):
                outcomes.append(outcome)
                status = int(status or outcome.failed)
    except KeyboardInterrupt:
        status = INTERRUPTED
    print("", *summary(outcomes), sep="\n", flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
