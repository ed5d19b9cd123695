"""Bad steps: updates that are not to be made, and how many of them training goes on behind.

A loss or a gradient norm that is not finite makes a step bad. If asked, so does a loss far above its neighbours:
above their median by more than so many times their median absolute deviation, which no outlier among them moves much
(Hampel, The influence curve and its role in robust estimation, JASA 1974). To pass over the rows of a spike, rather
than to train on them, is what PaLM's authors did by hand (Chowdhery et al. 2022, section 5.1).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

#: Losses that a loss is compared with; until there are so many none is too high.
WINDOW = 100


class BadSteps:
    """What makes a step bad, by the steps before it; every process of a run has the same.

    ``limit``: so many in a row end training; with 0, as with 1, the first does. ``spike``: how many times their median
    absolute deviation a loss may lie above the median of the last ``window`` finite ones, skipped or not; None: any.
    """

    def __init__(self, limit: int = 0, spike: float | None = None, window: int = WINDOW):
        self.limit, self.spike = limit, spike
        self.in_a_row = 0
        self._losses: deque[float] = deque(maxlen=window)

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Be as behind the steps of these ``lines`` of metrics.jsonl."""
        for line in lines:
            self.note(math.nan if line["loss"] is None else line["loss"], bool(line.get("skipped")))

    def note(self, loss: float, skipped: bool) -> None:
        """A step was made, or skipped, with this loss (nats a target)."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if math.isfinite(loss):
            self._losses.append(loss)

    def fault(self, losses: Mapping[str, float]) -> str | None:
        """What is wrong with a step's ``losses`` by their names, of which ``loss`` is compared; None: nothing.

        Whether it was NaN or infinite is not said: ZeRO 1 to 3 report the norm of either as infinite.
        """
        loss = losses["loss"]
        if not math.isfinite(sum(losses.values())):
            return "the loss is not finite"
        if self.spike is None or len(self._losses) < (self._losses.maxlen or 0):
            return None
        middle = median(self._losses)
        deviation = median(abs(value - middle) for value in self._losses)
        if loss <= middle + self.spike * deviation:
            return None
        return (
            f"the loss is a spike: {loss:.4f}, above the median {middle:.4f} of the last {len(self._losses)} by more "
            f"than {self.spike:g} times their median absolute deviation {deviation:.4f}"
        )

    @property
    def last_straw(self) -> bool:
        """Whether one more bad step ends training."""
        return self.in_a_row + 1 >= self.limit
