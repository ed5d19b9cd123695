"""Where the labels of lines stand, so that none lies on another: above its line or below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from matplotlib.axes import Axes

#: Of the figure's height what the axes have at least, titles and labels taken off.
SHARE = 0.55


@dataclass(frozen=True)
class Label:
    """Words at a height of the data, in points: ``gap`` from it to the letters, ``size`` of the letters. ``covered`` of
    them are covered where it stands above, by a line that comes from there."""

    value: float
    gap: float = 3.0
    size: float = 8.5
    covered: float = 0.0

    def span(self, place: float, above: bool) -> tuple[float, float]:
        """From where to where it reaches, with its value at ``place``."""
        near, far = self.gap, self.gap + self.size
        return (place + near, place + far) if above else (place - far, place - near)


def sides(axes: Axes, labels: Sequence[Label], most: int = 8) -> list[bool]:
    """For each label at one end of the axes whether it stands above its value (True) or below it.

    That choice of all is taken in which labels cover each other, and the lines at each other's values, least, and leave
    the axes least; of equal ones that which has the most above. The limits of the axes must be set. More than ``most``
    labels all stand above: there is no room to be had.
    """
    if len(labels) > most:
        return [True] * len(labels)
    height = height_of(axes)
    places = [height * _fraction(axes, label.value) for label in labels]

    def cost(choice: Sequence[bool]) -> tuple[float, int]:
        spans = [label.span(place, above) for label, place, above in zip(labels, places, choice, strict=True)]
        covered = sum(_shared(spans[i], spans[j]) for i in range(len(spans)) for j in range(i))
        covered += sum(label.covered for label, above in zip(labels, choice, strict=True) if above)
        for i, span in enumerate(spans):
            crossed = [place for j, place in enumerate(places) if j != i and span[0] - 1 < place < span[1] + 1]
            covered += 2 * len(crossed) + max(0.0, -span[0]) + max(0.0, span[1] - height)
        return covered, choice.count(False)

    return list(min(product((True, False), repeat=len(labels)), key=cost))


def height_of(axes: Axes) -> float:
    """The height that the axes will have at least, in points: before it is drawn a figure's layout does not tell."""
    return 72 * axes.get_figure().get_size_inches()[1] * SHARE / axes.get_subplotspec().get_gridspec().nrows


def spread(places: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Where labels stand that want ``places``: at least ``apart`` from each other, in the same order, between ``low``
    and ``high`` as far as there is room, and moved as little as that takes (the sum of squares)."""
    order = sorted(range(len(places)), key=places.__getitem__)
    # As if all stood at one place: then none may stand below the one before it, and groups of them share a mean.
    groups: list[list[float]] = []
    for rank, which in enumerate(order):
        groups.append([places[which] - rank * apart])
        while len(groups) > 1 and fmean(groups[-2]) >= fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    top = max(low, high - (len(places) - 1) * apart)
    even = [min(max(fmean(group), low), top) for group in groups for _ in group]
    found = [0.0] * len(places)
    for rank, which in enumerate(order):
        found[which] = even[rank] + rank * apart
    return found


def _fraction(axes: Axes, value: float) -> float:
    """Where the value stands, from 0 at the foot of the axes to 1 at their top."""
    x = axes.get_xlim()[1]
    return float((axes.transScale + axes.transLimits).transform((x, value))[1])


def _shared(one: tuple[float, float], other: tuple[float, float]) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
