"""Controls: ways of choosing blocks that look at nothing. A criterion that does not beat them has shown nothing.

Dropping the last blocks and healing is a strong baseline (Lu et al., arXiv 2411.15558); random and evenly spread
removals say how much of a result is the criterion's. All follow the protect rule, like any criterion.
"""

from __future__ import annotations

import random

from pipeline.criteria import CONTROLS
from pipeline.errors import RegrowError
from pipeline.importance.cut import Cut
from pipeline.importance.selection import choose_blocks


def control_order(control: str, total: int, seed: int = 0) -> list[int]:
    """The order of ``total`` blocks that a control follows: ``tail`` the last block first, ``random`` a permutation.

    The permutation is the same for a seed on every machine and version of Python 3. Raises RegrowError for
    ``uniform``, whose sets do not grow block by block, and on an unknown control.
    """
    if control == "tail":
        return list(reversed(range(total)))
    if control == "random":
        draw = random.Random(seed)
        return sorted(range(total), key=lambda _: draw.random())
    if control == "uniform":
        raise RegrowError(
            "control uniform spreads a given number of blocks, and has no order to follow to a perplexity budget; say "
            "how many go, Cut(remove=...)",
            about="uniform",
        )
    raise RegrowError(f"control {control!r}: known are {', '.join(CONTROLS)}")


def control_blocks(control: str, total: int, cut: Cut, *, seed: int = 0) -> list[int]:
    """The blocks, of ``total``, that a control removes for a cut, sorted.

    ``tail``: the last free blocks. ``random``: the first free ones of a seeded permutation, so that a larger set holds
    the smaller one. ``uniform``: free blocks at a constant stride, the middles of as many equal parts. Raises
    RegrowError on an unknown control, and as ``cut.count`` does.
    """
    if control != "uniform":
        return choose_blocks(control_order(control, total, seed), cut)
    free, count = cut.free(total), cut.count(total)
    return [free[(2 * part + 1) * len(free) // (2 * count)] for part in range(count)]
