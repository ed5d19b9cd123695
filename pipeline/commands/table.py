"""A table of words for a terminal: columns as wide as what stands in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """The rows as lines, two spaces between columns; those of the numbers in ``right`` end together, others begin so.

    A row with fewer cells than others ends there, and its last cell may be as long as it likes.
    """
    columns = max(map(len, rows), default=0)
    whole = [row for row in rows if len(row) == columns]
    widths = [max(len(row[number]) for row in whole) for number in range(columns)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
