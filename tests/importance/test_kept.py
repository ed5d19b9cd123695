"""What scoring and choosing know already: to the bit, in files or in memory, and the same on every process."""

from __future__ import annotations

import math

import pytest

from pipeline.errors import RegrowError
from pipeline.importance.kept import Kept
from pipeline.world import ALONE, World


@pytest.fixture(params=["files", "memory"])
def kept(request, tmp_path) -> Kept:
    return Kept(tmp_path / "progress" if request.param == "files" else None, World())


def test_values_come_back_to_the_bit(kept):
    value = {"losses": [0.1 + 0.2, 1e-310, 2.0**-1074, 1 / 3, -0.0], "nested": [[1, None], ["text", True]]}
    kept.put("batch-0", value)
    kept.meet()
    found = kept.get("batch-0")
    assert found == value and math.copysign(1, found["losses"][-1]) == -1, f"{found} is not what was put"


def test_names_are_those_that_begin_so(kept):
    assert kept.names("batch-") == set()
    for name in ("batch-00", "batch-01", "perplexities"):
        kept.put(name, [])
    kept.meet()
    assert kept.names("batch-") == {"batch-00", "batch-01"} and kept.names("other") == set()


def test_once_makes_a_value_once_and_known_asks_without_making(kept):
    made = []

    def make() -> list[int]:
        made.append(1)
        return [len(made)]

    assert kept.known("value", "nothing yet") == "nothing yet"
    assert [kept.once("value", make) for _ in range(3)] == [[1]] * 3 and len(made) == 1
    assert kept.known("value", "nothing yet") == [1]
    # A name that begins like another is another.
    assert kept.once("val", lambda: "other") == "other"


def test_a_folder_that_is_no_path_is_refused(tmp_path):
    with pytest.raises(RegrowError, match=r"folder '.*': a pathlib\.Path is wanted"):
        Kept(str(tmp_path), ALONE)


def test_another_start_finds_files_and_no_memory(tmp_path):
    for folder, expected in ((tmp_path / "progress", {"a"}), (None, set())):
        first = Kept(folder, World())
        first.put("a", 1)
        assert Kept(folder, World()).names("a") == expected


def test_each_process_gets_what_any_has_put_and_the_first_one_decides(by_processes):
    """In files and in memory. The others must not see a value that only they have: each would go another way."""
    for number, found in by_processes.items():
        for where, seen in found["kept"].items():
            assert seen["met"] == [[rank, rank / 3] for rank in range(number)], f"{number} processes, {where}: {seen}"
            assert seen["known"] == ["of rank 0"] * number, f"{number} processes, {where}: they know {seen['known']}"
            assert seen["once"] == ["made by 0"] + [f"made by {rank}" for rank in range(1, number)]
            assert seen["again"] == ["made by 0"] * number, f"{where}: what is kept is not what the first one made"
