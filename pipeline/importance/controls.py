"""Controls: ways of choosing blocks that look at nothing. A criterion that does not beat them has shown nothing.

Dropping the last blocks and healing is a strong baseline (Lu et al., arXiv 2411.15558); random and evenly spread
removals say how much of a result is the criterion's. All follow the protect rule, like any criterion.
"""

from __future__ import annotations

import random

from pipeline.criteria import CONTROLS
from pipeline.importance.selection import choose_blocks, protected_blocks
from pipeline.run import RegrowError


def tail_order(total: int) -> list[int]:
    """The last block first."""
    return list(reversed(range(total)))


def random_order(total: int, seed: int) -> list[int]:
    """A permutation of the blocks: the same for a seed on every machine and version of Python 3."""
    draw = random.Random(seed)
    return sorted(range(total), key=lambda _: draw.random())


def control_blocks(
    control: str, total: int, remove: int, *, protect_first: int = 4, protect_last: int = 2, seed: int = 0
) -> list[int]:
    """The ``remove`` blocks of ``total`` that a control removes, sorted.

    ``tail``: the last free blocks. ``random``: the first free ones of a seeded permutation, so that a larger set holds
    the smaller one. ``uniform``: free blocks at a constant stride, the middles of as many equal parts. Raises
    RegrowError on an unknown control, or when too few blocks are free.
    """
    protect = {"protect_first": protect_first, "protect_last": protect_last}
    if control == "tail":
        return choose_blocks(tail_order(total), remove, **protect)
    if control == "random":
        return choose_blocks(random_order(total, seed), remove, **protect)
    if control != "uniform":
        raise RegrowError(f"control {control!r}: known are {', '.join(CONTROLS)}")
    kept = protected_blocks(total, protect_first, protect_last)
    free = [block for block in range(total) if block not in kept]
    count = min(remove, len(free))
    spread = [free[(2 * part + 1) * len(free) // (2 * count)] for part in range(count)]
    return choose_blocks([*spread, *(block for block in range(total) if block not in spread)], remove, **protect)
