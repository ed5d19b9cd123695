"""Answers that are kept: to the last digit, over kills, and whoever has given them."""

from __future__ import annotations

import errno
import resource

import pytest

from pipeline.evaluation.tasks.answers import Answers, batch_key

GIVEN = [[-1.2345678901234567, True], [-0.1, False]]


def test_answers_come_back_to_the_last_digit_whichever_process_gave_them(tmp_path):
    first, second = Answers(tmp_path, 0), Answers(tmp_path, 1)
    first.add("a", GIVEN)
    second.add("b", ["text\nof lines"])
    assert second.get("a") is None, "what another process adds is read at the next start"
    first.close(), second.close()
    again = Answers(tmp_path, 2)
    assert again.get("a") == GIVEN and again.get("b") == ["text\nof lines"] and again.get("c") is None
    again.close()


@pytest.mark.parametrize("torn", [b'{"batch": "b", "ans', b'{"batch": "b", "answers": [1]}'])
def test_a_line_that_a_kill_tore_is_done_again_and_loses_no_other(tmp_path, torn):
    answers = Answers(tmp_path, 0)
    answers.add("a", GIVEN)
    answers.close()
    with (tmp_path / "0.jsonl").open("ab") as file:
        file.write(torn)
    answers = Answers(tmp_path, 0)
    assert answers.get("a") == GIVEN and answers.get("b") is None
    answers.add("c", GIVEN)
    answers.close()
    answers = Answers(tmp_path, 0)
    assert answers.get("c") == GIVEN, "the line behind the torn one is lost"
    answers.close()


def test_a_full_disk_is_said(tmp_path):
    """A file that may not grow takes the part of a line that fits, as a full disk does."""
    answers, limits = Answers(tmp_path, 0), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError) as met:
            answers.add("a", GIVEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        answers.close()
    assert met.value.errno == errno.ENOSPC and met.value.filename == str(tmp_path / "0.jsonl")


def test_a_key_is_that_of_the_content():
    assert batch_key(["x", [1, 2]]) == batch_key(["x", (1, 2)]) != batch_key(["x", [1, 3]])
