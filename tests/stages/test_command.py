"""The command that began a stage, as a person would type it."""

from __future__ import annotations

from pathlib import Path

from pipeline.run import Run
from pipeline.stages.command import note_command, noted_command


def test_the_last_command_is_told_with_its_quotes(tmp_path: Path, monkeypatch):
    run = Run(tmp_path)
    assert noted_command("train", run) is None
    for title in ("first", "two words"):
        monkeypatch.setattr("sys.argv", ["/somewhere/regrow", "run", "my.yaml", f"report.title={title}"])
        note_command("train", run)
    assert noted_command("train", run) == "regrow run my.yaml 'report.title=two words'"
