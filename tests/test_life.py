"""Signs of life: silence is broken, speech is not, and nothing is said behind the end."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline import life
from pipeline.life import signs_of_life, telling


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(life, "FIRST", 0.5)
    monkeypatch.setattr(life, "BETWEEN", 0.3)


def test_a_long_work_says_that_it_goes_on_until_it_ends():
    said = []
    with signs_of_life(said.append, lambda seconds: f"{seconds}"):
        time.sleep(1.2)
    before = list(said)
    time.sleep(0.4)
    assert len(before) >= 2 and said == before, said
    assert 0.5 <= float(before[0]) < float(before[1]) - 0.2, f"not after 0.5 s and then every 0.3 s: {said}"
    assert all(thread.name != "signs of life" for thread in threading.enumerate()), "a thread was left behind"


def test_what_was_said_last_is_repeated_where_nothing_follows():
    said = []
    with telling(said.append) as tell:
        tell("block 1 of 2\nmore of it")
        time.sleep(0.7)
        for number in range(20):
            tell(f"step {number}")
            time.sleep(0.03)
    assert said[:2] == ["block 1 of 2\nmore of it", "still at it, 1 s after: block 1 of 2"], f"said in all: {said}"
    assert said[2:] == [f"step {number}" for number in range(20)], "what speaks was interrupted"


def test_what_is_at_work_is_said_until_the_next_line():
    said = []
    with telling(said.append) as tell:
        tell("step 1")
        for number in (1, 2):
            tell.at(f"step 2: micro-batch {number} of 3")
            time.sleep(0.1)
        assert said == ["step 1"], "what is at work is said at once"
        time.sleep(0.5)
        tell("step 2")
        time.sleep(0.7)
    signs = [line.rpartition(", ")[0] for line in said[1 : said.index("step 2")]]
    assert set(signs) == {"step 2: micro-batch 2 of 3"}, said
    assert said[-1].endswith("s after: step 2"), f"what was at work before the last line is said behind it: {said}"


def test_an_error_of_the_work_comes_through_and_ends_it():
    said = []
    with pytest.raises(ValueError, match="broken"), telling(said.append):
        raise ValueError("broken")
    time.sleep(0.6)
    assert said == []


def test_a_line_that_cannot_be_written_ends_nothing():
    """A full disk: the work itself meets it where something would be lost."""

    def full(line):
        raise OSError("no space")

    with signs_of_life(full, str):
        time.sleep(0.6)
