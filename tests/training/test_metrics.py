"""Line files: what a kill left torn is dropped, what is behind the checkpoint is cut and kept, nothing stands twice."""

from __future__ import annotations

import json
import math
import subprocess

import pytest

from pipeline.errors import RegrowError
from pipeline.training.metrics import BYTES, LineFile, cut_after, cut_lines, last_lines, pace, read_lines


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        LineFile(path).append({"step": step, "loss": 1 / step})
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
    LineFile(path).append({"step": 6, "loss": 2})
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
    LineFile(path).append({"step": 4, "loss": 0})
    assert cut_after(path, 3) == 1
    assert steps(discarded) == [4, 5, 4], "a second cut forgot the first"
    assert [json.loads(line)["loss"] for line in discarded.read_text().splitlines()] == [0.25, 0.2, 0]


@pytest.mark.parametrize("count", [1, 3, 500])
def test_the_last_lines_of_a_long_file_are_those_of_all(path, tmp_path, count):
    lines = LineFile(path)
    for step in range(6, 400):
        lines.append({"step": step, "note": "x" * 20})
    with path.open("a") as file:
        file.write('{"step": 400, "lo')
    assert last_lines(path, count) == read_lines(path)[-count:]
    lines.append({"note": "x" * 2 * BYTES * count})
    assert last_lines(path, count) == read_lines(path)[-count:], "a line longer than what was read hides all others"
    assert last_lines(tmp_path / "absent.jsonl", count) == []


def test_a_cut_at_zero_keeps_nothing_and_no_file_is_no_error(path, tmp_path):
    assert cut_after(path, 0) == 5
    assert read_lines(path) == []
    assert cut_after(tmp_path / "absent.jsonl", 0) == 0
    assert not (tmp_path / "absent.jsonl").exists(), "a file was made where there was none"


def test_a_line_is_taken_out_of_the_middle_and_kept(path):
    assert cut_lines(path, lambda line: line["step"] == 3) == 1
    assert steps(path) == [1, 2, 4, 5] and steps(path.with_name("metrics.discarded.jsonl")) == [3]


def test_every_line_is_json_also_where_a_value_is_not_finite(path):
    """As strict readers know JSON: Python's own would take NaN and Infinity, and write them."""
    LineFile(path).append({"step": 6, "loss": math.inf, "mfu": None, "grad_norm": math.nan})
    path.write_text(path.read_text() + '{"step": 7, "loss": Infinity}\n')  # a line of an earlier version
    cut_after(path, 6)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for file in (path, path.with_name("metrics.discarded.jsonl")):
        lines = [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]
    assert lines == [{"step": 7, "loss": None}]
    assert read_lines(path)[-1] == {"step": 6, "loss": None, "mfu": None, "grad_norm": None}


def test_the_pace_is_that_of_the_last_twenty_steps():
    """800 tokens a step; behind one of the last twenty stands a checkpoint of 3 s."""
    old = [{"seconds": 100.0, "tokens_per_second": 1.0}] * 30
    new = [{"seconds": 1.0, "tokens_per_second": 800.0}] * 18
    saved = [{"seconds": 4.0, "tokens_per_second": 200.0}, {"seconds": 2.0, "tokens_per_second": 400.0}]
    assert pace(old + new + saved) == pytest.approx((20 * 800 / 24, (18 + 4 + 2) / 20))
    assert pace(new[:1]) == (800.0, 1.0), "one step is a window too"
    earlier = {"seconds": 2.0, "interval": 5.0, "tokens_per_second": 10.0}
    assert pace([earlier]) == (4.0, 5.0), "an earlier version's line has what is between the steps apart"


def test_a_value_that_is_not_finite_is_null_however_deep_it_lies(tmp_path):
    LineFile(tmp_path / "tasks.jsonl").append({"step": 7, "tasks": {"sums": {"value": math.nan, "items": 3}}})
    assert read_lines(tmp_path / "tasks.jsonl") == [{"step": 7, "tasks": {"sums": {"value": None, "items": 3}}}]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small file system: test.sh as root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_next_start_goes_on(small_disk):
    path = small_disk / "metrics.jsonl"
    lines, written = LineFile(path), 0
    with pytest.raises(OSError, match="No space left on device") as error:
        for written in range(2000):
            lines.append({"step": written + 1, "loss": 1.0, "reason": "x" * 50})
    assert error.value.filename == str(path)
    assert 100 < written < 2000
    assert steps(path) == list(range(1, written + 1)), "a line that was written is lost, or one stands torn"
    path.with_name("metrics.discarded.jsonl").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=256k", str(small_disk)], check=True)
    assert cut_after(path, 50) == written - 50
    LineFile(path).append({"step": 51, "loss": 1.0})
    assert steps(path) == list(range(1, 52))


def test_a_disk_that_is_read_only_by_now_is_named(small_disk):
    """What was open stays so; what is opened then is refused."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system") as error:
        LineFile(small_disk / "held_out.jsonl").append({"step": 1})
    assert str(error.value.filename) == str(small_disk / "held_out.jsonl")


@pytest.mark.parametrize("gone", ["deleted", "moved", "its folder moved", "another in its place"])
def test_a_file_that_is_gone_is_not_written_to(tmp_path, gone):
    folder = tmp_path / "train"
    folder.mkdir()
    path = folder / "metrics.jsonl"
    lines = LineFile(path)
    lines.append({"step": 1})
    if gone == "deleted":
        path.unlink()
    elif gone == "its folder moved":
        folder.rename(tmp_path / "elsewhere")
    else:
        path.rename(tmp_path / "elsewhere")
    if gone == "another in its place":
        path.touch()
    with pytest.raises(OSError, match="moved or deleted while it was written to") as error:
        lines.append({"step": 2})
    assert error.value.filename == str(path)
