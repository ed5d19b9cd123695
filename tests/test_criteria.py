"""The table of criteria: the same names wherever a criterion is offered, computed, described and drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.criteria import CONTROLS, CRITERIA, criteria_table
from pipeline.importance.criteria import FROM_MODEL, FROM_VARIANTS, FROM_WEIGHTS, NEEDS
from pipeline.importance.distances import DISTANCES, MEASURES
from pipeline.reporting.drawing import COLOURS

PROJECT = Path(__file__).parent.parent


def test_the_page_of_scoring_holds_the_table():
    page = (PROJECT / "docs" / "scoring.md").read_text(encoding="utf-8")
    assert criteria_table() in page, (
        "docs/scoring.md lags behind pipeline/criteria.py; its table is: "
        "python -c 'from pipeline.criteria import criteria_table; print(criteria_table())'"
    )


def test_every_row_can_be_drawn_and_told_apart():
    assert {f"family-{row.family}" for row in CRITERIA.values()} <= COLOURS.keys()
    looks = [(row.family, row.marker) for row in CRITERIA.values()] + [
        ("control", row.marker) for row in CONTROLS.values()
    ]
    assert len(set(looks)) == len(looks), "two lines of one drawing look alike"


def test_every_row_is_made_and_nothing_else():
    assert list(NEEDS) == list(CRITERIA), "pipeline/criteria.py and pipeline/importance/criteria.py name others"
    tables = {
        "variants": FROM_VARIANTS,
        "states": MEASURES,
        "weights": FROM_WEIGHTS,
        "maps, gradients": FROM_MODEL,
    }
    for kinds, table in tables.items():
        needing = {name for name, need in NEEDS.items() if need in kinds.split(", ")}
        assert needing == set(table), f"what needs {kinds} is not what is made of them"


def test_windows_are_promised_where_they_are_made():
    assert {name for name, row in CRITERIA.items() if row.windows == "all"} == set(DISTANCES)


def test_the_table_needs_no_torch():
    code = "import sys, pipeline.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0, "the config imports torch"
