"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import math


def warm_up(steps: int, share: float, stated: int | None) -> int:
    """Updates of warm-up in a run of ``steps``: as many as are ``stated``, else ceil(``share`` x steps)."""
    return math.ceil(share * steps) if stated is None else stated


def learning_rate(
    step: int, *, steps: int, peak: float, final: float, rising: int, schedule: str, decay: float = 0.2
) -> float:
    """The rate for update ``step`` (0 to ``steps`` - 1).

    Linear warm-up over ``rising`` updates reaches ``peak`` at its last one. Then ``cosine`` falls to ``final`` at the
    last update (Loshchilov & Hutter 2017, without restarts); ``linear`` falls there in a straight line; ``wsd`` stays
    at ``peak`` and falls linearly to ``final`` over the last ceil(decay x steps) updates (Hu et al. 2024, MiniCPM);
    ``constant`` stays.
    """
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "constant":
        return peak
    falling = min(math.ceil(decay * steps), steps - rising) if schedule == "wsd" else steps - rising
    # The last update has exactly the final rate; the update before the fall has exactly the peak.
    progress = max(0, step - (steps - falling) + 1) / max(1, falling)
    if progress == 0:
        return peak
    share = 1 - progress if schedule in ("wsd", "linear") else (1 + math.cos(math.pi * progress)) / 2
    return final + (peak - final) * share
