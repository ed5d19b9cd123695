"""Line files: what a kill left torn is dropped, what is behind the checkpoint is cut and kept, nothing stands twice."""

from __future__ import annotations

import json

import pytest

from pipeline.run import RegrowError
from pipeline.training.metrics import append_line, cut_after, read_lines


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        append_line(path, {"step": step, "loss": 1 / step})
    return path


def steps(path) -> list[int]:
    return [line["step"] for line in read_lines(path)]


def test_lines_come_back_as_they_were_written(path, tmp_path):
    assert read_lines(path)[2] == {"step": 3, "loss": 1 / 3}, "a float did not survive"
    assert read_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("tail", ['{"step": 6, "lo', "{", '{"step": 6, "loss": 0.1}', '{"step": 6, "lo\n'])
def test_a_torn_last_line_is_dropped(path, tail):
    """Also one that is whole but for its line end: the next line would be written onto it."""
    with path.open("a") as file:
        file.write(tail)
    assert steps(path) == [1, 2, 3, 4, 5], f"the tail {tail!r} was not dropped alone"
    assert cut_after(path, 5) == 0
    append_line(path, {"step": 6, "loss": 2})
    assert read_lines(path)[-1] == {"step": 6, "loss": 2}, "the line behind a torn one is lost"
    assert path.read_text().count("\n") == 6


def test_a_damaged_line_elsewhere_is_refused_with_its_number(path):
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:5]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RegrowError, match=r"metrics\.jsonl:2: damaged line"):
        read_lines(path)


def test_lines_behind_the_checkpoint_are_cut_and_kept(path):
    assert cut_after(path, 3) == 2, "steps 4 and 5 stand behind step 3"
    assert steps(path) == [1, 2, 3]
    discarded = path.with_name("metrics.discarded.jsonl")
    assert steps(discarded) == [4, 5], "what was measured is lost"
    append_line(path, {"step": 4, "loss": 0})
    assert cut_after(path, 3) == 1
    assert steps(discarded) == [4, 5, 4], "a second cut forgot the first"
    assert [json.loads(line)["loss"] for line in discarded.read_text().splitlines()] == [0.25, 0.2, 0]


def test_a_cut_at_zero_keeps_nothing_and_no_file_is_no_error(path, tmp_path):
    assert cut_after(path, 0) == 5
    assert read_lines(path) == []
    assert cut_after(tmp_path / "absent.jsonl", 0) == 0
    assert not (tmp_path / "absent.jsonl").exists(), "a file was made where there was none"
