"""Selection: from scores to the blocks that go, and the order as a file that other tools read.

The order runs from the least important block to the most important one. How many blocks go and which may not is the
cut's to say (cut.py).

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

from pipeline.errors import RegrowError
from pipeline.files import write_atomic
from pipeline.importance.cut import Cut

#: Of an entry of scores.json: distances of all windows by start and length, or the entries of some lengths by length.
Windows = Sequence[Sequence[float]] | Mapping[str, Mapping[str, Any]]


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


def choose_blocks(order: Sequence[int], cut: Cut) -> list[int]:
    """The first blocks of the order that are not protected, sorted by index (one-shot removal).

    >>> choose_blocks([0, 3, 5, 1, 4, 2], Cut(remove=2, protect_first=1, protect_last=1))
    [1, 3]

    Raises RegrowError when the order is not one of all blocks, and as ``cut.count`` does.
    """
    if isinstance(order, Mapping):
        raise RegrowError('block order: an order is wanted, scores["ppl"]["order"], got a dict of scores')
    if not isinstance(cut, Cut):
        raise RegrowError(f"cut {cut!r}: a Cut is wanted, such as Cut(remove=9)")
    total = len(order)
    if sorted(order) != list(range(total)):
        raise RegrowError(f"block order {list(order)}: not every index from 0 to {total - 1} stands in it once")
    free = set(cut.free(total))
    return sorted([block for block in order if block in free][: cut.count(total)])


def choose_within(order: Sequence[int], cut: Cut, perplexity: Callable[[list[int]], float]) -> list[int]:
    """As many blocks of the order as the cut's perplexity allows, sorted: one-shot removal that stops at a budget.

    ``perplexity(blocks)`` measures the model without those blocks (``perplexity_without`` of ppl.py). Blocks go one
    after another until the next would bring it above the budget. Raises RegrowError when the first one would.
    """
    if cut.perplexity is None:
        raise RegrowError("choose_within: the cut states no perplexity; choose_blocks takes a cut that says a number")
    chosen: list[int] = []
    for remove in range(1, cut.most(len(order)) + 1):
        tried = choose_blocks(order, cut.taking(remove))
        reached = perplexity(tried)
        if not reached <= cut.perplexity:
            if not chosen:
                raise RegrowError(
                    f"without block {tried[0]} the perplexity is {reached:.4g}, the budget {cut.perplexity:.4g}"
                )
            break
        chosen = tried
    return chosen


def choose_window(windows: Windows, cut: Cut) -> list[int]:
    """The free window of as many neighbouring blocks as go that carries its input least far (contiguous removal).

    >>> len(choose_window(scores["block_influence"]["windows"], Cut(remove=3, protect_first=2, protect_last=1)))
    3

    ``windows`` is that of an entry of scores.json: a distance's, where entry n - 1 of list s is the distance of the n
    blocks from s, or ppl's or linear's, by n. Equal windows by start. Raises RegrowError as ``cut.count`` does, and
    when windows of this length were not scored.
    """
    if isinstance(windows, Mapping) and "order" in windows:
        raise RegrowError('windows: those of a criterion are wanted, scores["ppl"]["windows"], got all that it has')
    if isinstance(windows, Mapping):
        length, scored = next(iter(windows.items()))
        total = len(scored["scores"]) + int(length) - 1
    else:
        total = len(windows)
    remove, free = cut.count(total), cut.free(total)
    if not isinstance(windows, Mapping):
        by_start = [window[remove - 1] for window in windows[: total - remove + 1]]
    elif str(remove) in windows:
        by_start = windows[str(remove)]["scores"]
    else:
        raise RegrowError(
            f"windows of {', '.join(windows)} blocks were scored, not of {remove}; score these too, with "
            f"Settings(ppl_lengths=({remove},)) or linear_lengths",
            about="windows",
        )
    start = min(free[: len(free) - remove + 1], key=lambda start: (by_start[start], start))
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
