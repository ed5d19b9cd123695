"""Checkpoints written while training goes on: the same bytes as if it had waited, complete last, failures agreed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.training.checkpoint import Kept, complete_checkpoints, folder_of


@pytest.fixture
def found(measured):
    return measured(2)["beside-1-bf16"]


def test_training_goes_on_while_a_checkpoint_is_written_and_the_bytes_are_those_of_waiting(found):
    assert len(found["blocking"]) == 3
    assert found["during"] == {}, "it was complete while its files were held up"
    assert found["background"] == found["blocking"], "what was written beside training is another state"
    assert found["moved"], "training did not move the weights meanwhile: nothing is shown"


def test_where_one_process_has_no_memory_for_a_copy_all_wait_and_it_is_said(found):
    assert found["narrow"] == found["blocking"]
    (line,) = found["said"]
    assert "host memory (100 bytes free on a machine) does not hold" in line and "training waits" in line


def test_a_checkpoint_that_one_process_could_not_write_ends_all_and_earlier_ones_stay(found):
    for problem in found["problems"]:
        for part in ("step-00000004: could not be written (rank 1: the disk is full", "earlier checkpoints stay"):
            assert part in problem, problem
    assert found["left"] == ["step-00000002"]


def test_the_newest_stay_and_those_at_multiples():
    steps = [10, 20, 30, 40, 50, 60]
    folders = [Path(f"step-{step:08d}") for step in steps]

    def gone(newest: int, every: int | None) -> list[int]:
        return [int(folder.name[-8:]) for folder in Kept(newest, every).gone(folders)]

    assert gone(2, None) == [10, 20, 30, 40]
    assert gone(1, 20) == [10, 30, 50]
    assert gone(9, None) == []


def test_room_is_asked_for_all_that_stand_at_once():
    assert Kept(2).at_once(steps=100, every=10) == 3
    assert Kept(2).at_once(steps=15, every=10) == 2, "the run writes no more"
    assert Kept(2, every=30).at_once(steps=100, every=20) == 4, "step 60 stays beside two and the one to come"
    assert Kept(9).at_once(steps=1000, every=1) == 10


def test_only_complete_ones_are_counted(tmp_path):
    for step in (1, 2, 3):
        folder_of(tmp_path, step).mkdir()
    for step in (1, 3):
        (folder_of(tmp_path, step) / "COMPLETE").touch()
    assert complete_checkpoints(tmp_path) == [folder_of(tmp_path, 1), folder_of(tmp_path, 3)]
