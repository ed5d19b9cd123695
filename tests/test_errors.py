"""Errors: the reason of another error, in a line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from pipeline.errors import first_line, of_system
from tests import ROOT


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one\ntwo", "one"),
        ("\n  one \ntwo", "one"),
        (
            "Can't load the tokenizer:\n\n  no vocab.json in it\nsee the docs",
            "Can't load the tokenizer: no vocab.json in it",
        ),
        ("a:\nb:\nc\nd", "a: b: c"),
        ("what was wrong:", "what was wrong:"),
        ("at https://host/file?token=secret:\nrefused", "at https://host/file refused"),
        ("", "ValueError"),
    ],
)
def test_the_first_line_of_an_error_holds_its_reason(message, line):
    assert first_line(ValueError(message)) == line


def test_what_the_system_refuses_is_said_of_its_file_or_of_the_output():
    full = os.strerror(errno.ENOSPC)
    assert str(of_system(OSError(errno.ENOSPC, full, "runs/log.txt"))) == f"runs/log.txt: {full}"
    assert str(of_system(OSError(errno.ENOSPC, full))) == f"what there is to say cannot be written: {full}"
    assert str(of_system(OSError("no way to reach the hub\nsee there"))) == "OSError: no way to reach the hub"
    assert str(of_system(TimeoutError())) == "TimeoutError: TimeoutError"


def test_a_config_that_is_printed_holds_its_letters_whatever_the_terminal(tmp_path):
    (tmp_path / "own.yaml").write_text(
        f"extends: {ROOT}/configs/demo.yaml\nreport: {{title: \u6a21}}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pipeline", "config", str(tmp_path / "own.yaml")]
    done = subprocess.run(
        command, env=dict(os.environ) | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert "title: \u6a21\n" in done.stdout.decode()


def test_a_letter_that_the_output_has_no_code_for_is_printed_as_its_number(tmp_path):
    (tmp_path / "\u6a21").mkdir()
    command = [sys.executable, "-m", "pipeline", "runs", str(tmp_path)]
    done = subprocess.run(
        command, env=dict(os.environ) | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert done.stdout.splitlines()[1].startswith(rb"\u6a21 ")
