"""Status reads the folder alone: done, begun and untouched stages, and who works there."""

from __future__ import annotations

import os
import socket

import pytest

from pipeline.commands.status import look_at
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.reporting.intervals import perplexity_interval
from pipeline.run import Run


def line(run: Run, stage: str) -> str:
    return next(line for line in look_at(run.folder).text.splitlines() if line.split()[:1] == [stage])


def test_every_stage_is_done_begun_or_not(run):
    write_json(run.stage("score") / "progress" / "started.json", {})
    for number in range(3):
        write_json(run.stage("score") / "progress" / f"batch-{number:05d}.json", {})
    assert line(run, "data").split() == ["data", "done", "2026-11-22T04:00:00+0000,", "1.2", "s"]
    assert line(run, "score").split() == ["score", "begun", "3", "micro-batches", "swept"]
    assert line(run, "prune").split() == ["prune", "not", "begun"]
    assert "no command works in it now" in look_at(run.folder).text
    with run.lock():
        assert f"in use by host {socket.gethostname()} pid {os.getpid()}, which is alive" in look_at(run.folder).text


def test_a_sweep_block_by_block_is_told_in_blocks(run):
    progress = run.stage("score") / "progress"
    write_json(progress / "started.json", {})
    shelf = progress / "states-0-of-1"
    shelf.mkdir()
    assert "0 blocks swept" in line(run, "score")
    # The first micro-batch enters block 4, the second block 3; dense states of earlier blocks are kept.
    for name in ("000000-0003", "000000-0004", "000001-0002", "000001-0003"):
        (shelf / f"{name}.states").touch()
    assert "3 blocks swept" in line(run, "score")
    for path in shelf.glob("*.states"):
        path.unlink()
    for number in range(2):
        write_json(shelf / f"{number:06d}.json", {})
    assert "all blocks swept" in line(run, "score")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RegrowError, match=r"not a run's folder \(no config\.yaml in it\)"):
        look_at(tmp_path)
    with pytest.raises(RegrowError, match=r"not a run's folder"):
        look_at(tmp_path / ("n" * 300))


def test_a_run_is_found_by_its_config_too(run, tiny_config):
    assert look_at(tiny_config) == look_at(run.folder)
    elsewhere = look_at(tiny_config, ["run.name=other"])
    assert elsewhere.text == f"run other not begun: there is no {run.folder.with_name('other')}"
    assert not elsewhere.held and not elsewhere.done
    with pytest.raises(RegrowError, match=r"run\.name=other goes with a config's file"):
        look_at(run.folder, ["run.name=other"])
    with pytest.raises(RegrowError, match=r"absent\.yaml"):
        look_at(tiny_config.with_name("absent.yaml"))


def test_a_chain_is_found_by_its_config_before_it_begins(tiny_config, run):
    chain = ["chain.parts=2", "prune.remove=2"]
    status = look_at(tiny_config, [*chain, "run.name=parts"])
    assert [line.said.partition(":")[0] for line in status.lines if line.said.startswith("run")] == [
        "run parts-1 not begun",
        "run parts-2 not begun",
    ]
    assert "chain parts in" in status.text and not status.done


def test_a_finished_run_shows_what_came_of_it(reference):
    status = look_at(reference)
    assert status.done and not status.held
    results = read_json(reference / "evaluate" / "results.json")["models"]
    for name, model in results.items():
        entry = model["perplexity"]["held_out"]
        low, high = perplexity_interval(entry)
        told = f"perplexity {entry['value']:.2f} (95 %: {low:.2f} to {high:.2f}), {model['parameters']:,} parameters"
        assert f"  {name:<9} {told}" in status.text, status.text
    assert (reference / "train" / "exports" / "step-00000024").is_dir()
    assert f"model     {reference / 'train' / 'exports' / 'step-00000024'}" in status.text
    assert f"page      {reference / 'report' / 'index.html'}" in status.text
