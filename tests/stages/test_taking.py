"""Runs that branch from another: what fits is taken, all of a stage or nothing, and the other run is left as it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.run import Run
from pipeline.stages import taking
from pipeline.stages.taking import other_run, takeable, would_take

FORK = ("run.name=fork", "run.from=done")


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run in runs/done, with its config old.yaml, in the working directory."""
    shutil.copytree(Path(__file__).parent / "887a583", tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return Run(Path("runs/done"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_that_fits_is_taken_and_counts_as_done(other, here):
    before, fork = contents(other.folder), Run(Path("runs/fork"))
    assert here("run", "old.yaml", *FORK, "--until", "train")[0] == 0
    status, out, _ = here("run", "old.yaml", *FORK, "--until", "train")
    assert status == 0 and out.count("done before, skipped") == 4 and "taken from" not in out, out
    log = (fork.folder / "log.txt").read_text()
    assert "prune: taken from run done: 6 files linked, 0 copied" in log
    assert "train: taken from run done: 5 files linked, 2 copied" in log
    for stage in ("data", "score", "prune", "train"):
        assert fork.record(stage) == {**other.record(stage), "taken": "runs/done"}
        assert fork.outputs(stage) == other.record(stage)["outputs"]
    weights, lines = "train/exports/step-00000004/model.safetensors", "train/metrics.jsonl"
    assert (fork.folder / weights).samefile(other.folder / weights)
    assert not (fork.folder / lines).samefile(other.folder / lines), "a line that is added here would stand there too"
    assert contents(other.folder) == before


def test_another_size_branches_behind_the_scores(other, here):
    status, out, message = here("prune", "old.yaml", *FORK, "prune.remove=2")
    assert status == 0, message
    assert "[score] taken from run done" in out
    assert "[prune] not taken from run done: prune.remove: was 1, is 2" in out
    assert Run(Path("runs/fork")).record("prune")["result"]["removed"] == [1, 2], "not by the scores that were taken"


def test_what_is_to_be_done_again_is_not_taken(other, here):
    config, fork = load_config("old.yaml", FORK), Run(Path("runs/fork"))
    assert takeable(["data", "score", "prune"], ("score", "prune"), config, fork) == ["data"]
    (fork.stage("data") / "progress").mkdir(parents=True)
    assert takeable(["prune"], (), config, fork) == ["score", "prune"], "a stage that was begun here goes on"
    assert takeable(["prune"], (), load_config("old.yaml"), other) == []


def test_killed_while_it_takes_nothing_is_half_taken(other, here, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(taking, "write_json", lambda *_: os._exit(7))
        killed = os.fork()
        if not killed:
            here("data", "old.yaml", *FORK)
        assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == 7
    fork = Run(Path("runs/fork"))
    assert (fork.folder / ".data.new" / "manifest.json").exists() and not fork.stage("data").exists()
    _, out, _ = here("data", "old.yaml", *FORK)
    assert "[data] taken from run done" in out and not (fork.folder / ".data.new").exists()


def test_without_links_files_are_copied_and_a_full_disk_is_said(other, here, refused, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "link", full)
    assert "taken from run done: 0 files linked, 1 copied" in here("data", "old.yaml", *FORK)[1]
    monkeypatch.setattr(shutil, "copy2", full)
    message = refused("score", "old.yaml", *FORK)
    assert "run.from runs/done: its stage score could not be taken (No space left on device: " in message
    assert not (Path("runs/fork") / "score").exists() and not (Path("runs/fork") / ".score.new").exists()


def test_a_run_that_lost_a_file_or_is_not_there(other, here, refused):
    (other.stage("score") / "scores.json").write_text("{}")
    assert "stage score is not done yet" in refused("prune", "old.yaml", *FORK)
    log = Path("runs/fork/log.txt").read_text()
    assert "score: not taken from run done: " in log and "scores.json is missing, or of another size" in log
    message = refused("data", "old.yaml", "run.name=third", "run.from=nowhere")
    assert "run.from nowhere: neither a run in runs nor the folder of one" in message
    assert not Path("runs/third").exists()
    with pytest.raises(RegrowError, match=r"run\.from runs/done: that is this run"):
        other_run(load_config("old.yaml", ["run.from=runs/done"]))
    assert other_run(load_config("old.yaml")) is None


def test_a_plan_says_what_would_be_taken(other):
    from pipeline.commands.plan import plan

    more = "score.criteria=[ppl, block_influence, linear]"
    config = load_config("old.yaml", [*FORK, more, "prune.remove=2"])
    lines = list(would_take(["data", "score", "prune", "train"], config))
    assert lines == [
        "run.from done: data will be taken where model and text are the same",
        "run.from done: score will be taken where model and text are the same",
        "run.from done: prune does not fit (prune.remove: was 1, is 2)",
    ]
    notes = plan(load_config("old.yaml", FORK))["notes"]
    assert "run.from done: train will be taken where model and text are the same" in notes
    assert "run.from done: evaluate does not fit (another version of regrow wrote it)" in notes
    assert not Path("runs/fork").exists()
