"""Memory on a CPU: what a process of its own takes grows with weights and batch, and one that is killed is told."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.evaluation import resident
from pipeline.evaluation.protocol import Size
from pipeline.evaluation.resident import Stored, resident_peaks, tells_resident
from tests.families import build

TEXT = torch.arange(150)
MIB = 2**20


def write_model(folder: Path, width: int, vocabulary: int) -> tuple[Stored, int]:
    """A folder with a model of one block, most of it embedding and head, and the bytes of its weights."""
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 1, "head_dim": width // 4}
    model = build("llama", **shape, vocab_size=vocabulary).to(torch.bfloat16)
    model.save_pretrained(folder)
    return Stored(folder, "bfloat16", "auto", False), model.get_memory_footprint()


@pytest.mark.slow
def test_peaks_grow_with_the_weights_and_with_the_batch_and_do_not_stay(tmp_path):
    (tiny, few), (large, many) = write_model(tmp_path / "tiny", 32, 200), write_model(tmp_path / "large", 512, 40_000)
    assert few < MIB < 80 * MIB < many, "shows nothing: the models do not differ"
    narrow, wide = Size(3, 1), Size(2, 100)
    of_tiny = resident_peaks(tiny, [narrow], TEXT, 40)[narrow]
    of_large = resident_peaks(large, [narrow, wide], TEXT, 40)
    assert of_tiny > 0
    apart = of_large[narrow] - of_tiny
    assert 0.9 * (many - few) < apart < 1.5 * (many - few), f"{apart} bytes apart, and weights of {few} and {many}"
    # The wide one was generated first.
    assert of_large[wide] - of_large[narrow] > 40 * MIB, f"{of_large}: the batch took nothing, or was kept"


def killed(connection, *arguments):
    """A process that answers once, and is then killed as the kernel kills for memory."""
    connection.send(1000)
    os.kill(os.getpid(), signal.SIGKILL)


def broken(connection, *arguments):
    raise SystemExit(3)


@pytest.mark.slow
def test_a_process_that_is_killed_did_not_fit_and_one_that_ends_otherwise_is_an_error(monkeypatch, tmp_path):
    nothing = Stored(tmp_path / "nothing", "bfloat16", "auto", False)
    sizes = [Size(2, 1), Size(2, 4), Size(2, 8)]
    with pytest.raises(RegrowError, match="nothing"):
        resident_peaks(nothing, sizes, TEXT, 8)
    monkeypatch.setattr(resident, "_measure", killed)
    assert resident_peaks(nothing, sizes, TEXT, 8) == {Size(2, 1): 1000, Size(2, 4): None, Size(2, 8): None}
    monkeypatch.setattr(resident, "_measure", broken)
    with pytest.raises(RegrowError, match="ended with exit status 3"):
        resident_peaks(nothing, sizes, TEXT, 8)
    assert not multiprocessing.active_children(), "a process was left"


def test_another_process_is_asked_for_what_may_still_fit(monkeypatch, tmp_path):
    asked = []

    def answers(stored, sizes, text, prompt_tokens):
        """Up to the first batch of 4 or more, where a process ends."""
        asked.append(list(sizes))
        for size in sizes:
            yield 1000 * size.batch if size.batch < 4 else None
            if size.batch >= 4:
                return

    monkeypatch.setattr(resident, "_answers", answers)
    sizes = [Size(new, batch) for new in (2, 5) for batch in (1, 4, 8)]
    peaks = resident_peaks(Stored(tmp_path, "bfloat16", "auto", False), sizes[::-1], TEXT, 8)
    assert peaks == {size: 1000 if size.batch == 1 else None for size in sizes}
    assert asked == [sizes, [Size(5, 1)]], "more was asked than may fit"


def test_this_machine_tells_what_is_resident():
    assert tells_resident()
