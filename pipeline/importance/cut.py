"""A cut: how much of a model goes, and which of its blocks stay whatever their scores.

Shortened LLM's "+" rule, which it applies to every criterion, is the protect rule here: the first and the last blocks
stay. Which of the others go is another question: selection.py, controls.py and greedy.py choose, each for a cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real

from pipeline.errors import RegrowError
from pipeline.model.blocks import check_indices, whole_numbers
from pipeline.model.describe import Sizes

#: The ways of saying how much goes; exactly one of them holds.
STATEMENTS = ("remove", "ratio", "parameters", "perplexity", "blocks")
#: Shares of the blocks above which a cut at once, and all cuts together, are said to be large, and who says so.
AT_ONCE, IN_ALL = Fraction(1, 3), Fraction(1, 2)
GUIDELINES = "github.com/NVIDIA/Model-Optimizer, examples/pruning/README.md, on depth"


@dataclass(frozen=True)
class Cut:
    """How much goes, by exactly one statement, and how many blocks at both ends are protected.

    ``remove``: so many blocks. ``ratio``: floor(ratio x blocks), the ratio taken as it is written (0.29 of 100 is 29).
    ``parameters``: the fewest blocks that leave at most so many parameters, whichever blocks they are. ``perplexity``:
    as many as keep the perplexity of the calibration sequences at or below it. ``blocks``: these, also protected ones.

    >>> Cut(ratio=0.29).count(100), Cut(remove=9).protected(30)
    (29, [0, 1, 2, 3, 28, 29])

    Raises RegrowError when it is made of no statement, of several, or of what is no number.
    """

    remove: int | None = None
    ratio: float | None = None
    parameters: int | None = None
    perplexity: float | None = None
    blocks: tuple[int, ...] | None = None
    protect_first: int = 4
    protect_last: int = 2

    def __post_init__(self) -> None:
        stated = [name for name in STATEMENTS if getattr(self, name) is not None]
        if len(stated) != 1:
            have = " and ".join(stated) or "none"
            raise RegrowError(f"a cut states exactly one of {', '.join(STATEMENTS)}; stated here: {have}")
        if self.blocks is not None:
            whole_numbers(self.blocks)
        else:
            _require_number(stated[0], getattr(self, stated[0]), whole=self.remove is not None)
        for name in ("protect_first", "protect_last"):
            _require_number(name, getattr(self, name), whole=True)
            if getattr(self, name) < 0:
                raise RegrowError(f"a cut's {name} is {getattr(self, name)}: it is a number of blocks, 0 or more")

    def protected(self, total: int) -> list[int]:
        """Indices, of ``total`` blocks, that stay: the first ones and the last ones."""
        return [index for index in range(total) if index < self.protect_first or index >= total - self.protect_last]

    def free(self, total: int) -> list[int]:
        """Indices, of ``total`` blocks, that may go."""
        return list(range(self.protect_first, total - self.protect_last))

    def most(self, total: int) -> int:
        """How many of ``total`` blocks can go: all free ones, or all but one block."""
        return max(0, min(len(self.free(total)), total - 1))

    def count(self, model: Sizes | int) -> int:
        """How many blocks go from a model, of which ``parameters`` must know the sizes; the others, how many it has.

        Raises RegrowError when no block would go, or more than can, and where the statement says no number: a
        perplexity is not known before the model is run, and named blocks are not counted.
        """
        total = model if isinstance(model, int) else len(model.blocks)
        if self.parameters is not None:
            if isinstance(model, int):
                raise RegrowError("a cut in parameters needs the sizes of the model's blocks: Sizes.of(model)")
            return self._reaching(model, self.parameters)
        if self.remove is not None:
            count, stated = self.remove, f"remove {self.remove}"
        elif self.ratio is not None:
            count = math.floor(Fraction(str(self.ratio)) * total)
            stated = f"ratio {self.ratio} of {total} blocks is {count}"
        else:
            what = "a perplexity" if self.blocks is None else "named blocks"
            raise RegrowError(f"a cut of {what} does not say how many blocks are to be chosen")
        if count < 1:
            raise RegrowError(f"{stated}: no block would go; the smallest cut is 1 of {total} blocks ({1 / total:.4g})")
        if count > self.most(total):
            raise RegrowError(f"{stated}: only {self._limit(total)}; remove fewer or protect fewer")
        return count

    def taking(self, count: int) -> Cut:
        """A cut of ``count`` blocks under the same protect rule."""
        return Cut(remove=count, protect_first=self.protect_first, protect_last=self.protect_last)

    def planned(self, model: Sizes) -> list[int]:
        """Parameters of each block that goes, as far as that is known before one is chosen.

        Those of named blocks; else those of the smallest, as many as go; none where a perplexity will decide. Raises
        RegrowError when the cut is impossible.
        """
        if self.perplexity is not None:
            total = len(model.blocks)
            if not self.most(total):
                raise RegrowError(f"perplexity {self.perplexity:g}: {self._limit(total)}; protect fewer")
            return []
        if self.blocks is not None:
            return [model.blocks[index] for index in check_indices(self.blocks, len(model.blocks))]
        return sorted(model.blocks)[: self.count(model)]

    def _reaching(self, model: Sizes, target: int) -> int:
        """The fewest blocks that leave at most ``target`` parameters. The smallest are taken to go first, so that the
        target holds whichever go."""
        if model.whole <= target:
            raise RegrowError(
                f"parameters {target:,}: the dense model has {model.whole:,}, so that no block would go; set a smaller "
                "target"
            )
        total, sizes = len(model.blocks), sorted(model.blocks)
        left = [model.whole - sum(sizes[:count]) for count in range(self.most(total) + 1)]
        count = next((count for count, rest in enumerate(left) if rest <= target), None)
        if count is None:
            raise RegrowError(
                f"parameters {target:,}: {self._limit(total)}, and removing all of them leaves {left[-1]:,}; set a "
                "larger target or protect fewer"
            )
        return count

    def _limit(self, total: int) -> str:
        return f"{self.most(total)} of {total} blocks may go, {len(self.protected(total))} are protected"


def large_cuts(removed: int, total: int, first: tuple[int, list[int]] | None = None) -> list[str]:
    """Lines on a cut of ``removed`` from ``total`` blocks that is large in itself, or with those before it. ``first``:
    how many blocks the first dense model had, and which of them are left; None where this is that model."""
    lines = []
    if removed > AT_ONCE * total:
        lines.append(
            f"{removed} of {total} blocks go in one cut, {removed / total:.0%}; up to a third is advised "
            f"({GUIDELINES}): regrow chain removes them in parts, with training between"
        )
    dense = total if first is None else first[0]
    left = total - removed
    if dense - left > IN_ALL * dense:
        lines.append(
            f"{dense - left} of {dense} blocks are gone in all, {(dense - left) / dense:.0%}; above half, steps of 30% "
            f"are advised, with distillation after each ({GUIDELINES})"
        )
    return lines


def _require_number(name: str, value: object, whole: bool) -> None:
    wanted = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real) or math.isnan(value):
        raise RegrowError(f"a cut's {name} is {value!r}: {wanted} is wanted")
    if name == "ratio" and math.isinf(value):
        raise RegrowError(f"a cut's {name} is {value!r}: a share of the blocks is wanted")
