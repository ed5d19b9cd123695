"""Columns of words are as wide as what stands in them."""

from __future__ import annotations

from pipeline.commands.table import aligned


def test_columns_begin_or_end_together():
    rows = [("run", "size", "date"), ("a", "10.00 MB", "today"), ("longer", "1 kB", "-")]
    assert aligned(rows, right=(1,)) == [
        "run         size  date",
        "a       10.00 MB  today",
        "longer      1 kB  -",
    ]


def test_a_short_row_s_last_cell_widens_no_column():
    rows = [("run", "size", "date"), ("a", "no run at all, and long words on it"), ("b", "1", "2")]
    assert aligned(rows) == ["run  size  date", "a    no run at all, and long words on it", "b    1     2"]
    assert aligned([]) == []
