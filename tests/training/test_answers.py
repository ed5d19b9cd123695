"""Stored answers: what is read is what was written, what is missing is known, and what is damaged is named."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import RegrowError
from pipeline.training.answers import ROWS, bytes_per_token
from tests.training.asked import LANES, LENGTH, SAMPLES, contents, made_up, new_store, rows

BLOCK = ROWS * LANES


def write(store, start: int, end: int, vocabulary: int) -> None:
    given = list(rows(start, end))
    for lane in range(LANES):
        own = [row for row in given if row.lane == lane]
        for place in range(0, len(own), ROWS):
            some = own[place : place + ROWS]
            answers = [made_up(row, vocabulary) for row in some]
            store.write(lane, some[0].index // BLOCK, answers, some[-1].cursor)


@pytest.mark.parametrize(("vocabulary", "width"), [(200, 2), (100_000, 4)])
def test_what_is_read_is_what_was_written(tmp_path, vocabulary, width):
    store = new_store(tmp_path, vocabulary)
    write(store, 0, BLOCK + 6, vocabulary)
    wanted = list(rows(0, BLOCK + 6))
    other = new_store(tmp_path, vocabulary)
    for row in wanted:
        found, answer = other.read(row), made_up(row, vocabulary)
        assert found.ids.dtype.itemsize == width and found.counts.dtype == np.uint8
        for name in ("row", "ids", "counts", "different", "entropies"):
            assert np.array_equal(getattr(found, name), getattr(answer, name)), f"{name} of row {row.index}"
    two = other.told([wanted[3], wanted[BLOCK + 3]])
    first, second = (made_up(wanted[index], vocabulary) for index in (3, BLOCK + 3))
    assert two.ids.shape == two.counts.shape == (2 * LENGTH, SAMPLES)
    assert int(two.counts.sum()) == int(first.counts.sum()) + int(second.counts.sum())
    last = int(second.different[-1])
    assert two.ids[-1, :last].tolist() == second.ids[-last:].tolist() and not two.counts[-1, last:].any()
    assert two.entropies.tolist() == [*first.entropies.tolist(), *second.entropies.tolist()]


def test_the_same_answers_are_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        write(new_store(tmp_path / name), 0, BLOCK + 6, 200)
    assert contents(tmp_path / "one") == contents(tmp_path / "other") and len(contents(tmp_path / "one")) == 2 * LANES


def test_what_is_missing_is_known(tmp_path):
    store = new_store(tmp_path)
    assert store.missing(3 * BLOCK + 1) == [range(4)]
    write(store, 0, 3 * BLOCK, 200)
    assert store.missing(3 * BLOCK) == [] and store.missing(3 * BLOCK + 1) == [range(3, 4)]
    store.path(2, 1).unlink()
    assert store.missing(3 * BLOCK + 1) == [range(1, 2), range(3, 4)]
    assert store.missing(BLOCK + 2) == [], "the file that is gone holds none of these rows"
    # A longer run finds files with too few rows.
    write(store, 3 * BLOCK, 3 * BLOCK + 6, 200)
    assert store.missing(3 * BLOCK + 7) == [range(1, 2), range(3, 4)]
    assert store.cursors(0) == {}
    behind = {row.lane: row.cursor for row in rows(2 * BLOCK, 3 * BLOCK)}
    assert store.cursors(3) == behind


def test_what_a_kill_left_counts_for_nothing(tmp_path):
    store = new_store(tmp_path)
    write(store, 0, BLOCK, 200)
    torn = store.path(0, 1).with_name(".00000001.safetensors.77.new")
    torn.write_bytes(b"half a file")
    assert store.missing(BLOCK) == [] and store.missing(2 * BLOCK) == [range(1, 2)]
    store.sweep()
    assert not torn.exists() and store.path(0, 0).exists()


def test_a_damaged_file_is_named(tmp_path):
    store = new_store(tmp_path)
    write(store, 0, BLOCK, 200)
    path, row = store.path(1, 0), next(rows(1, 2))
    whole = path.read_bytes()
    for kind, content in (
        ("cut", whole[:-5]),
        ("changed", whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]),
        ("empty", b""),
        ("another's", b"{}" * 50),
    ):
        path.write_bytes(content)
        with pytest.raises(RegrowError) as caught:
            new_store(tmp_path).read(row)
        assert str(caught.value).startswith(f"{path}: damaged (") and "delete it" in str(caught.value), kind
        if kind != "changed":
            with pytest.raises(RegrowError, match="damaged"):
                store.missing(BLOCK)
    path.unlink()
    with pytest.raises(RegrowError, match="not there any more"):
        new_store(tmp_path).read(row)


def test_an_answer_on_another_row_is_refused(tmp_path):
    store = new_store(tmp_path)
    write(store, 0, 6, 200)
    row, other = rows(4, 6)
    assert store.read(row).row.tolist() == made_up(row).row.tolist()
    with pytest.raises(RegrowError, match=r"another row 4 than this run reads.*train\.distill\.store"):
        store.read(type(row)(4, other.input_ids, 0, row.cursor))
    with pytest.raises(RegrowError, match="no answer on row 8"):
        store.read(next(rows(8, 9)))


def test_bytes_of_a_token():
    assert bytes_per_token(50, 49152, 1.0) == pytest.approx(53, abs=1)
    assert bytes_per_token(50, 128256, 1.0) == pytest.approx(87, abs=1)
    assert bytes_per_token(50, 49152, 2.0) == 153
