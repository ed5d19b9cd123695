"""Bars of a call: on a terminal, off where they are not wanted, and where nobody sees them."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from pipeline.evaluation.notebook import perplexity
from pipeline.importance.scoring import score_blocks
from pipeline.shown import bars, shown
from tests.families import VOCABULARY, build

IDS = torch.randint(0, VOCABULARY, (24, 16), generator=torch.Generator().manual_seed(0))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def look(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in the place of the errors' stream: in the test itself, as pytest puts its own there before."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_a_call_shows_how_far_each_of_its_parts_is(monkeypatch):
    terminal, model = look(monkeypatch), build("llama")
    score_blocks(model, IDS.split(8), ["ppl", "linear", "taylor"])
    said = terminal.getvalue()
    for part in ("sweep", "linear maps", "linear maps, judged", "gradients"):
        assert f"{part}:   0%" in said, f"no bar of {part}"
    assert "/3 [" in said, "the sweep has three batches"
    perplexity(model, IDS.split(8))
    assert "perplexity:   0%" in terminal.getvalue() and "0/3 [" in terminal.getvalue()


def test_it_is_silent_where_that_is_asked_for_or_nobody_looks(monkeypatch):
    terminal, model, lines = look(monkeypatch), build("llama"), []
    score_blocks(model, IDS, progress=False)
    score_blocks(model, IDS, progress=lines.append)
    perplexity(model, IDS, progress=False)
    with bars(False):
        assert list(shown([1, 2], "numbers")) == [1, 2]
    assert terminal.getvalue() == "" and lines == ["sequence 24 of 24"]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    score_blocks(model, IDS)
    assert sys.stderr.getvalue() == "", "a bar in a log file"


def test_a_bar_ends_with_its_call(monkeypatch):
    terminal = look(monkeypatch)
    with pytest.raises(ZeroDivisionError), bars(True):
        _ = [1 / number for number in shown([1, 0, 2], "parts")]
    assert "parts:  33%" in terminal.getvalue() or "parts:   0%" in terminal.getvalue()
    before = terminal.getvalue()
    assert list(shown([3], "later")) == [3] and terminal.getvalue() == before
