"""Numbers as the records hold them: what can be drawn, and reckoned with."""

from __future__ import annotations

import math
from typing import TypeGuard


def finite(value: object) -> TypeGuard[float]:
    """Whether this is a number, and finite."""
    return isinstance(value, int | float) and math.isfinite(value)
