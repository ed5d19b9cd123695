"""What a command shows: plain lines, and on a terminal a bar that takes no lines."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests import ROOT
from tests.terminal import on_terminal

PROGRAM = """
from pipeline.display import display
display.say("train", "resuming at step 0 of 4")
for step in (1, 2, 3):
    display.say("train", f"step {step} of 4: loss {5 - step}.0, 100 tokens/s, 0:00:01 left")
display.say("train", "step 3: held-out perplexity 20.00")
display.say("train", "step 4 of 4: loss 1.0, 100 tokens/s, 0:00:00 left")
display.say("score", "sequence 1 of 2")
display.say("score", "removing 2 of 8 blocks: [1, 2]")
display.close()
print("behind it")
"""
PLAIN = [
    "[train] resuming at step 0 of 4",
    "[train] step 1 of 4: loss 4.0, 100 tokens/s, 0:00:01 left",
    "[train] step 2 of 4: loss 3.0, 100 tokens/s, 0:00:01 left",
    "[train] step 3 of 4: loss 2.0, 100 tokens/s, 0:00:01 left",
    "[train] step 3: held-out perplexity 20.00",
    "[train] step 4 of 4: loss 1.0, 100 tokens/s, 0:00:00 left",
    "[score] sequence 1 of 2",
    "[score] removing 2 of 8 blocks: [1, 2]",
    "behind it",
]
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def seen(printed: str) -> list[str]:
    """The lines that are left on a terminal on which so much was printed: of what is drawn anew the last."""
    lines = [""]
    for piece in re.findall(r"\x1b\[\d*[A-Za-z]|\n|\r|[^\x1b\n\r]+", COLOUR.sub("", printed)):
        if piece == "\n":
            lines.append("")
        elif piece == "\x1b[2K":
            lines[-1] = ""
        elif piece == "\x1b[1A":
            lines.pop()
        elif piece != "\r":
            lines[-1] += piece
    return [line.rstrip() for line in lines]


def test_elsewhere_than_on_a_terminal_every_line_is_plain():
    for more in ({}, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}):
        environment = {"PYTHONPATH": str(ROOT), "PATH": "", **more}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.stdout.splitlines() == PLAIN, done.stderr


@pytest.mark.parametrize("columns", [80, 50])
def test_on_a_terminal_lines_that_count_move_a_bar(columns):
    printed = on_terminal("-c", PROGRAM, columns=columns)
    assert COLOUR.search(printed)
    assert "\x1b[?25l" not in printed, "the cursor is hidden: one that is killed leaves the terminal without"
    lines = seen(printed)
    assert [line for line in lines if "━" not in line] == [
        "[train] resuming at step 0 of 4",
        "[train] step 3: held-out perplexity 20.00",
        "loss 1.0, 100 tokens/s, 0:00:00 left",
        "[score] removing 2 of 8 blocks: [1, 2]",
        "behind it",
        "",
    ]
    ends = [(line.split("━")[0].strip(), line.rpartition("━")[2].strip()) for line in lines if "━" in line]
    assert ends == [("[train]", "step 4 of 4"), ("[score]", "sequence 1 of 2")]
    assert all(len(line) <= columns for line in lines)


def test_no_color_and_a_dumb_terminal_are_heeded():
    assert not re.search(r"\x1b\[[\d;]*3\d[;m]", on_terminal("-c", PROGRAM, NO_COLOR="1")), "a colour was used"
    assert on_terminal("-c", PROGRAM, TERM="dumb").splitlines() == PLAIN
