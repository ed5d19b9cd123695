"""Which values of a record are numbers to draw, and that asking for one loads nothing that draws."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from pipeline.reporting.numbers import finite
from tests import ROOT


@pytest.mark.parametrize("value", [None, "1", math.nan, math.inf, -math.inf, [1.0]])
def test_what_is_no_number_or_not_finite_cannot_be_drawn(value):
    assert not finite(value)
    assert finite(0) and finite(-2.5)


def test_an_interval_is_had_without_matplotlib():
    """``regrow status`` shows intervals, and answers at once."""
    code = "import sys, pipeline.reporting.intervals; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
