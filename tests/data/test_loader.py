"""The loader: the canonical rows whatever the number of processes and workers, and a resume at any step."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from pipeline.data.loader import RowStream, fitting_workers, load_rows
from pipeline.launch import die_with_parent
from pipeline.run import RegrowError

LANES = 12
#: The lanes have some 40 to 250 rows in an epoch.
ROWS = 12 * 60


def encode(text: str) -> list[int]:
    """Ids of a text without a tokenizer: its bytes, and 256 behind them."""
    return [*text.encode(), 256]


def stream(corpus, tmp_path, **more) -> RowStream:
    return RowStream(corpus, encode=encode, lanes=LANES, row_length=128, seed=0, cache=tmp_path, **more)


def together(corpus, tmp_path, world, rows, *, workers=0, start=0, cursors=None):
    """``rows`` rows of ``world`` ranks, in the order in which the ranks hand them out."""
    ranks = [load_rows(stream(corpus, tmp_path, rank=rank, world=world, start=start, cursors=cursors), workers,
                       die_with_parent) for rank in range(world)]  # fmt: skip
    shares = [islice(rank, rows // world) for rank in ranks]
    return [row for step in zip(*shares, strict=True) for row in step]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        (a.index, a.lane, a.cursor) == (b.index, b.lane, b.cursor) and np.array_equal(a.input_ids, b.input_ids)
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture
def canonical(corpus, tmp_path):
    """The rows as one process without workers reads them."""
    rows = list(islice(stream(corpus, tmp_path), ROWS))
    assert [row.index for row in rows] == list(range(ROWS))
    assert all(row.lane == row.index % LANES for row in rows)
    assert len({row.cursor.epoch for row in rows}) > 1, "the rows of this test end within the first epoch"
    return rows


def test_the_rows_do_not_depend_on_processes_and_workers(corpus, tmp_path, canonical):
    for world in (2, 3, 4, 6):
        assert same(together(corpus, tmp_path, world, ROWS), canonical), f"{world} processes read other rows"
    for world, workers in ((1, 1), (1, 2), (2, 2), (3, 2)):
        rows = together(corpus, tmp_path, world, 120, workers=workers)
        assert same(rows, canonical[:120]), f"{world} processes of {workers} workers read other rows"


def test_a_resume_at_any_row_in_any_layout_goes_on_exactly(corpus, tmp_path, canonical):
    # Row 660 lies in the second epoch of the shorter lanes; 6 and 30 before every lane was begun twice.
    for start, world, workers in ((6, 6, 0), (6, 2, 2), (30, 3, 2), (ROWS - 60, 1, 0), (ROWS - 60, 4, 0),
                                  (ROWS - 58, 2, 1)):  # fmt: skip
        cursors = {row.lane: row.cursor for row in canonical[:start]}
        rows = together(corpus, tmp_path, world, 48, workers=workers, start=start, cursors=cursors)
        assert same(rows, canonical[start : start + 48]), f"resumed at row {start} with {world} x {workers}"


def test_workers_are_lowered_to_a_number_that_divides():
    assert [fitting_workers(4, 12, world) for world in (1, 2, 3, 4, 6, 12)] == [4, 3, 4, 3, 2, 1]
    assert fitting_workers(0, 12, 3) == 0 and fitting_workers(4, 384, 8) == 4
    with pytest.raises(RegrowError, match="lanes 12 does not divide by 5 processes"):
        fitting_workers(4, 12, 5)


def test_a_worker_that_meets_damage_ends_the_loading_with_the_shard_s_name(corpus, tmp_path):
    path = tmp_path / "corpus" / corpus[2].path
    path.write_bytes(path.read_bytes()[:-1])
    for workers in (0, 2):
        with pytest.raises(RegrowError, match=r"^shard \S+part_2\.parquet: \d+ bytes, the manifest says .*replaced$"):
            together(corpus, tmp_path, 1, ROWS, workers=workers)
