"""The table of runs is read from their folders alone, and what is no run is a line of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from pipeline.commands.runs import runs_text
from pipeline.errors import RegrowError
from pipeline.files import write_atomic, write_json
from pipeline.run import Run
from tests import ROOT
from tests.records import stage_record

DONE = ROOT / "tests" / "stages" / "887a583" / "runs" / "done"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder runs, in the working directory, with one finished run of small files."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DONE, "runs/done")
    return Path("runs")


def line(name: str, folder: Path | None = None) -> str:
    (found,) = [line for line in runs_text(folder).splitlines() if line.split("  ")[0] == name]
    return " ".join(found.split())


def test_a_run_and_what_was_set_aside_of_it(runs):
    assert line("done").startswith("done all 3 of 4 300.41 ") and line("done").endswith(" 2026-11-27 14:42")
    run = Run(runs / "done")
    run.set_aside(["evaluate", "report"])
    run.set_aside(["train"])
    assert line("done").startswith("done data to prune 3 of 4 - ")
    rows = [" ".join(each.split()) for each in runs_text(None).splitlines()]
    assert rows[0] == "run done blocks perplexity on disk date"
    assert rows[2].startswith("aside 001 evaluate, report - 300.41 ")
    assert rows[3].startswith("aside 002 train - 295.63* ") and rows[3].endswith(" 2026-11-27 14:41")
    assert rows[4].startswith("* of training's own held-out rows")
    assert rows[-1] == "put back: regrow restore RUN ASIDE, such as regrow restore runs/demo 001"
    assert rows[1:4] == [" ".join(each.split()) for each in runs_text(runs / "done").splitlines()[1:4]]


def test_a_run_that_is_at_work_and_where_its_training_stands(runs):
    run = Run(runs / "done")
    for stage in ("evaluate", "report"):
        shutil.rmtree(run.stage(stage))
    (run.stage("train") / "stage.json").unlink()
    assert "done data to prune, train at step 4 of 4 3 of 4 " in line("done")
    write_atomic(run.stage("train") / "metrics.jsonl", json.dumps({"step": 2}) + "\n")
    os.utime(run.stage("train") / "metrics.jsonl", (0, 4e9))
    with run.lock():
        words = line("done")
    assert f"train at step 2 of 4, in use by host {socket.gethostname()} pid {os.getpid()} 3 of 4" in words
    assert " 2096-10-02 " in words


def test_blocks_are_those_of_what_was_trained(runs):
    run = Run(runs / "done")
    record = run.record("train")
    for init, blocks in (("dense", "4 of 4"), ("random", "3 of 4"), ("runs/other", "-")):
        record["fingerprint"]["config"]["train.init"] = init
        run.finish("train", record)
        assert line("done").startswith(f"done all {blocks} 300.41")


def test_chains_stand_above_their_links_in_their_order(runs):
    for name in ("long", "long-1", "long-2", "long-10"):
        write_atomic(runs / name / "config.yaml", "")
    for number in (1, 2, 10):
        write_json(runs / f"long-{number}" / "data" / "stage.json", stage_record())
    lines = [each.split("  ")[0] for each in runs_text(runs).splitlines()[1:-1]]
    assert lines == ["done", "long", "long-1", "long-2", "long-10"]
    assert line("long") == "long chain of runs, 3 begun"
    (runs / "new").mkdir()
    write_atomic(runs / "new" / "config.yaml", "")
    assert line("new") == "new nothing done yet"


def test_what_is_no_run_or_is_damaged_is_a_line_that_says_so(runs):
    (runs / "elsewhere").mkdir()
    write_atomic(runs / "broken" / "config.yaml", "")
    write_atomic(runs / "broken" / "train" / "stage.json", "{")
    write_json(runs / "foreign" / "train" / "stage.json", ["of another tool"])
    write_atomic(runs / "foreign" / "config.yaml", "")
    write_atomic(runs / "a file", "")
    assert line("elsewhere") == "elsewhere not a run: no config.yaml in it"
    assert line("broken").startswith("broken cannot be read: runs/broken/train/stage.json: damaged, not valid JSON")
    assert line("foreign").startswith("foreign cannot be read: ")
    assert line("done").startswith("done all ")
    with pytest.raises(RegrowError, match=r"nowhere: cannot be read \(No such file or directory\); name the folder"):
        runs_text(Path("nowhere"))
    assert runs_text(runs / "elsewhere") == "no run in runs/elsewhere"


def test_files_that_runs_share_are_counted_once(runs):
    alone = runs_text(runs).splitlines()[-1]
    shutil.copytree(runs / "done", runs / "fork", copy_function=os.link)
    words = runs_text(runs)
    assert words.splitlines()[-1] == alone and alone.startswith("on disk in all: ")
    sizes = [each.split("300.41")[1].split("2026")[0].strip() for each in words.splitlines() if "300.41" in each]
    assert len(sizes) == 2 and sizes[0] == sizes[1]
