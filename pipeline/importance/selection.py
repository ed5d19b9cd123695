"""Selection: from scores to the blocks that go, and the order as a file that other tools read.

The order runs from the least important block to the most important one. Shortened LLM's "+" rule, which it applies
to every criterion, is the protect rule here: the first and the last blocks stay whatever their scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from pipeline.run import RegrowError, write_atomic


def order_blocks(scores: Sequence[float], higher_is: str = "more important") -> list[int]:
    """Block indices, least important first; equal scores by index. NaN scores are refused."""
    broken = [index for index, score in enumerate(scores) if math.isnan(score)]
    if broken:
        raise RegrowError(f"scores of blocks {broken} are not numbers; score again, in float32 if this was float16")
    sign = 1 if higher_is == "more important" else -1
    return sorted(range(len(scores)), key=lambda index: (sign * scores[index], index))


def near_ties(losses: Sequence[float], order: Sequence[int], tolerance: float) -> list[list[int]]:
    """Neighbours in the order whose mean losses (nats) differ by less than ``tolerance``: their order is noise."""
    return [[first, second] for first, second in pairwise(order) if abs(losses[first] - losses[second]) < tolerance]


def protected_blocks(total: int, first: int = 4, last: int = 2) -> list[int]:
    """Indices that stay: the ``first`` blocks and the ``last`` ones."""
    return [index for index in range(total) if index < first or index >= total - last]


def choose_blocks(order: Sequence[int], remove: int, *, protect_first: int = 4, protect_last: int = 2) -> list[int]:
    """The first ``remove`` blocks of the order that are not protected, sorted by index (one-shot removal).

    Raises RegrowError when the order is not one of all blocks, or too few are free to go.
    """
    total = len(order)
    if sorted(order) != list(range(total)):
        raise RegrowError(f"block order {list(order)}: not every index from 0 to {total - 1} stands in it once")
    kept = set(protected_blocks(total, protect_first, protect_last))
    free = [index for index in order if index not in kept]
    if remove > len(free):
        raise RegrowError(
            f"{remove} of {total} blocks cannot be removed: {len(kept)} are protected (first {protect_first}, last "
            f"{protect_last}), which leaves {len(free)}; lower prune.remove or the protect rule"
        )
    return sorted(free[:remove])


def write_block_order(path: Path, order: Sequence[int]) -> None:
    """One line without a header, least important first: the file that Shortened LLM's block_prune.py reads."""
    write_atomic(path, ",".join(map(str, order)) + "\n")


def read_block_order(path: Path, total: int) -> list[int]:
    """A block_order.csv for a model of ``total`` blocks. Raises RegrowError naming the file and what is wrong."""
    try:
        entries = path.read_text(encoding="utf-8").replace("\n", ",").split(",")
        order = [int(entry) for entry in entries if entry.strip()]
    except (OSError, ValueError) as error:
        raise RegrowError(f"block order {path}: cannot be read ({error})") from None
    if sorted(order) != list(range(total)):
        raise RegrowError(f"block order {path}: {len(order)} entries, expected each of 0 to {total - 1} once")
    return order
