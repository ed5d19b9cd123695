"""An error of a stage is a line for whoever meets it, and its traceback is in the log."""

from __future__ import annotations

import subprocess
import time

import psutil
import pytest

from pipeline.errors import RegrowError
from pipeline.run import Run
from pipeline.stages.told import told


def test_an_error_of_a_library_is_a_line_on_the_screen_and_keeps_its_traceback_in_the_log(tmp_path):
    from transformers import GenerationConfig

    run = Run(tmp_path / "run")
    causes = {
        "generation_config.json": lambda: GenerationConfig.from_pretrained(tmp_path),
        "No such file or directory: no-such-compiler": lambda: subprocess.run(["no-such-compiler"]),
    }
    for words, cause in causes.items():
        with pytest.raises(RegrowError) as error, told("score", run):
            cause()
        message = str(error.value)
        assert words in message and f"{run.folder}/log.txt says where" in message
        assert "\n" not in message, "more than a line for the screen"
    log = (run.folder / "log.txt").read_text()
    assert log.count("Traceback (most recent call last)") >= 2, log
    for place in ("transformers/generation/configuration_utils.py", "in _execute_child", "FileNotFoundError"):
        assert place in log, f"{place} is not in the log:\n{log}"
    with pytest.raises(RegrowError, match="as it is"), told("score", run):
        raise RegrowError("as it is")
    assert (run.folder / "log.txt").read_text().removeprefix(log).count("\n") == 1, "what explains itself is one line"


def test_a_reader_that_is_killed_while_nobody_asks_for_rows_is_told_in_a_line(tmp_path):
    """torch raises where the process is when the kernel tells it: in a step, a save, an evaluation."""
    from torch.utils.data import DataLoader

    before = set(psutil.Process().children())
    rows = iter(DataLoader(range(10), num_workers=1))
    next(rows)
    (reader,) = set(psutil.Process().children()) - before
    said = rf"data worker of rank 3 was killed \(pid {reader.pid}\).*goes on at the last checkpoint"
    with pytest.raises(RegrowError, match=said), told("train", Run(tmp_path), 3):
        reader.kill()
        time.sleep(10)
