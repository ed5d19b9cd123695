"""docs/first-hour.md: its commands, one after the other as a person types them, print what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import load_config
from tests import ROOT
from tests.conftest import DEMO

PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|text)\n(.*?)```", PAGE, flags=re.S)
#: Perplexities and what is computed of them have two decimals; so have sizes, which may be others.
FIGURE = re.compile(r"(?<![\d.,])\d+\.\d\d(?![\d%]| [GM]B)")
COMMANDS = [block for language, block in BLOCKS if language == "bash"]


def steps() -> Iterator[tuple[str, str]]:
    """Each block of commands with what is said to be printed, empty where nothing is."""
    for number, (language, block) in enumerate(BLOCKS):
        if language == "bash":
            following = BLOCKS[number + 1 : number + 2]
            yield block, following[0][1] if following and following[0][0] == "text" else ""


def plain(text: str) -> list[str]:
    """The lines without their numbers and the width of their columns: times and speeds are of a machine."""
    return [re.sub(r"\s+", " ", re.sub(r"\d[\d.,:]*(e[+-]?\d+)?", "#", line)).strip() for line in text.splitlines()]


def run(commands: str, folder: Path) -> str:
    program = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{program}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{commands}\nended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def test_the_config_and_what_is_changed_of_it_are_read(tmp_path):
    written = next(block for block in COMMANDS if "hour.yaml" in block and "cat >" in block)
    run(written, tmp_path)
    asked = re.findall(r"^regrow (?:run|plan) hour\.yaml (.*)$", "".join(COMMANDS), flags=re.M)
    changes = [[word for word in words.split() if re.match(r"[a-z_.]+=", word)] for words in asked]
    names = [load_config(tmp_path / "hour.yaml", found).run.name for found in changes]
    assert {"six", "nine", "twelve"} <= set(names)


@pytest.mark.slow
def test_what_the_page_says_is_printed(tmp_path):
    """Line by line, whatever their times and sizes; the blocks that were chosen; and perplexities to 2 %."""
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "demo").symlink_to(DEMO)
    for commands, said in steps():
        printed = run(commands, tmp_path)
        lines = set(plain(printed))
        missing = [line for line, form in zip(said.splitlines(), plain(said), strict=True) if form not in lines]
        assert not missing, f"behind\n{commands}\nthese were not printed:\n{chr(10).join(missing)}\nbut\n{printed}"
        for blocks in re.findall(r"\[\d[\d, ]+\]", said):
            assert blocks in printed, f"{blocks} were not chosen:\n{printed}"
        found = [float(one) for one in FIGURE.findall(printed)]
        for value in map(float, FIGURE.findall(said)):
            assert any(abs(one - value) <= 0.02 * value for one in found), f"{value} is not among {found}"
