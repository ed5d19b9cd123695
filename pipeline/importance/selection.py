"""Selection: from scores to the blocks that go, and the order as a file that other tools read.

The order runs from the least important block to the most important one. Shortened LLM's "+" rule, which it applies
to every criterion, is the protect rule here: the first and the last blocks stay whatever their scores.

One-shot selection takes the first free blocks of an order (``choose_blocks``), or as many as a perplexity allows
(``choose_within``); contiguous selection takes the best window of blocks (``choose_window``); greedy selection scores
again after each removal and stands in greedy.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.model.costs import count_removals
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


def choose_blocks(
    order: Sequence[int],
    remove: int | None = None,
    *,
    ratio: float | None = None,
    parameters: int | None = None,
    dense_parameters: int | None = None,
    block_parameters: int | Sequence[int] | None = None,
    protect_first: int = 4,
    protect_last: int = 2,
) -> list[int]:
    """The first blocks of the order that are not protected, sorted by index (one-shot removal).

    How many is said by exactly one of ``remove`` (so many), ``ratio`` (that share of all) and ``parameters`` (the
    fewest that leave at most so many of ``dense_parameters``), as in ``count_removals``. Raises RegrowError when the
    order is not one of all blocks, or too few are free to go.
    """
    total = len(order)
    if sorted(order) != list(range(total)):
        raise RegrowError(f"block order {list(order)}: not every index from 0 to {total - 1} stands in it once")
    kept = set(protected_blocks(total, protect_first, protect_last))
    free = [index for index in order if index not in kept]
    if remove is None or ratio is not None or parameters is not None:
        remove = count_removals(
            total,
            len(kept),
            remove=remove,
            ratio=ratio,
            parameters=parameters,
            dense_parameters=dense_parameters,
            block_parameters=block_parameters,
        )
    if remove > len(free):
        raise RegrowError(
            f"{remove} of {total} blocks cannot be removed: {len(kept)} are protected (first {protect_first}, last "
            f"{protect_last}), which leaves {len(free)}; lower prune.remove or the protect rule"
        )
    return sorted(free[:remove])


def choose_within(
    order: Sequence[int],
    budget: float,
    perplexity: Callable[[list[int]], float],
    *,
    protect_first: int = 4,
    protect_last: int = 2,
) -> list[int]:
    """As many blocks of the order as a perplexity allows, sorted: one-shot removal that stops at a budget.

    ``perplexity(blocks)`` measures the model without those blocks (``perplexity_without`` of ppl.py). Blocks go one
    after another until the next would bring it above ``budget``. Raises RegrowError when the first one would.
    """
    chosen: list[int] = []
    free = len(order) - len(protected_blocks(len(order), protect_first, protect_last))
    for remove in range(1, min(free, len(order) - 1) + 1):
        tried = choose_blocks(order, remove, protect_first=protect_first, protect_last=protect_last)
        reached = perplexity(tried)
        if not reached <= budget:
            if not chosen:
                raise RegrowError(f"without block {tried[0]} the perplexity is {reached:.4g}, the budget {budget:.4g}")
            break
        chosen = tried
    return chosen


def choose_window(
    windows: Sequence[Sequence[float]] | Mapping[str, Mapping[str, Any]],
    remove: int,
    *,
    protect_first: int = 4,
    protect_last: int = 2,
) -> list[int]:
    """The window of ``remove`` neighbouring blocks that carries its input least far (contiguous removal).

    ``windows`` is that of an entry of scores.json: a distance's, where entry n - 1 of list s is the distance of the n
    blocks from s, or ppl's or linear's, by n. Equal windows by start. Raises RegrowError when no window lies between
    the protected blocks, or when windows of this length were not scored.
    """
    if isinstance(windows, Mapping):
        if str(remove) not in windows:
            raise RegrowError(
                f"windows of {', '.join(windows)} blocks were scored, not of {remove}; add it to score.ppl_n or "
                "score.linear_n"
            )
        by_start = windows[str(remove)]["scores"]
        total = len(by_start) + remove - 1
    else:
        total = len(windows)
        by_start = [window[remove - 1] for window in windows[: max(0, total - remove + 1)]]
    starts = range(protect_first, total - protect_last - remove + 1)
    if not starts or not 1 <= remove < total:
        raise RegrowError(
            f"no window of {remove} of {total} blocks lies between the first {protect_first} and the last "
            f"{protect_last}, which are protected; lower prune.remove or the protect rule"
        )
    start = min(starts, key=lambda start: (by_start[start], start))
    return list(range(start, start + remove))


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
