"""What was set aside comes back whole, in place of what stands there, and nothing is lost, wherever it is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import STAGES, load_written
from pipeline.errors import RegrowError
from pipeline.files import hash_json, read_json, write_atomic, write_json
from pipeline.run import Run
from pipeline.stages.aside import chain_of, followers, restore
from pipeline.stages.curve import claim
from tests import ROOT

BACK = ["train", "evaluate", "report"]


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run of small files in runs/done, in the working directory."""
    shutil.copytree(Path(__file__).parent / "887a583" / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Run(Path("runs/done"))


def trained_again(run: Run, rate: float = 0.5) -> None:
    """Training as another learning rate would have left it, and nothing behind it."""
    run.set_aside(BACK)
    shutil.copytree(run.asides()[-1] / "train", run.stage("train"))
    record = read_json(run.stage("train") / "stage.json")
    record["fingerprint"]["config"]["train.learning_rate"] = rate
    record["outputs"]["metrics.jsonl"]["sha256"] = f"{rate}"
    run.finish("train", record)
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.001", f"learning_rate: {rate}"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the stages in a run's folder, or in an aside."""
    files = [path for stage in STAGES for path in (folder / stage).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_comes_back_takes_the_place_of_what_stands_there(done):
    said, before = [], contents(done.folder)
    write_atomic(done.stage("evaluate") / "curve.jsonl", "of the exports\n")
    whole = contents(done.folder)
    trained_again(done)
    other = contents(done.folder)
    restore(done, "1", said.append)
    assert contents(done.folder) == whole and before.items() < whole.items()
    assert [aside.name for aside in done.asides()] == ["002"]
    kept = contents(done.folder / "aside" / "002")
    assert kept == {name: content for name, content in other.items() if name.startswith("train/")}
    assert load_written(done.folder / "config.yaml").train.learning_rate == 0.001
    assert said == [
        "set aside in runs/done/aside/002/train",
        *(f"restored runs/done/{stage}" for stage in BACK),
        "config.yaml has again train.learning_rate: was 0.5, is 0.001",
    ]
    assert "restore: restored runs/done/train" in (done.folder / "log.txt").read_text()
    restore(done, "002", said.append)
    assert contents(done.folder) == other, "there and back again is not the same"
    assert contents(done.folder / "aside" / "003") == {n: c for n, c in whole.items() if n.split("/")[0] in BACK}


def test_the_config_is_that_beside_the_aside_but_for_what_other_stages_were_made_from(done):
    """Keys that no fingerprint holds, such as where the model is, come from there; what score was made from does not,
    when it has grown since."""
    trained_again(done)
    then, now = done.folder / "aside" / "001" / "config.yaml", done.folder / "config.yaml"
    then.write_text(then.read_text().replace("path: model\n", "path: another\n"))
    record = done.record("score")
    record["fingerprint"]["config"]["score.criteria"] = ["ppl", "block_influence", "magnitude"]
    done.finish("score", record)
    restore(done, "1", lambda line: None)
    config = load_written(now)
    assert (config.model.path, config.run.name) == ("another", "done")
    assert config.score.criteria == ("ppl", "block_influence", "magnitude")


def test_what_stands_behind_and_was_made_of_another_is_set_aside_too(done):
    whole = contents(done.folder)
    run_of_report = done.set_aside(["report"])[0].parent
    trained_again(done)
    for stage in ("evaluate", "report"):
        place = run_of_report if stage == "report" else done.folder / "aside" / "002"
        shutil.copytree(place / stage, done.stage(stage))
    shutil.rmtree(done.folder / "aside" / "002" / "evaluate")
    for stage in ("evaluate", "report"):
        record = done.record(stage)
        record["fingerprint"]["upstream"]["train"] = hash_json(done.record("train")["outputs"])
        done.finish(stage, record)
    restore(done, "2", lambda line: None)
    assert sorted(path.name for path in done.folder.iterdir() if path.name in STAGES) == sorted(STAGES[:4])
    assert {name: content for name, content in whole.items() if name.startswith("train/")}.items() <= contents(
        done.folder
    ).items()
    assert sorted(path.name for path in done.asides()[-1].iterdir()) == ["config.yaml", "evaluate", "report", "train"]


def test_what_was_made_of_something_else_is_refused_with_what_to_restore_first(done):
    done.set_aside(["evaluate", "report"])
    trained_again(done)
    before = contents(done.folder)
    with pytest.raises(RegrowError, match=r"aside/001/evaluate does not fit .* made of another train; restore 002 fir"):
        restore(done, "1", print)
    restore(done, "2", lambda line: None)
    restore(done, "1", lambda line: None)
    assert before.keys() <= contents(done.folder).keys() and done.record("report") is not None
    shutil.rmtree(done.stage("prune"))
    done.set_aside(["train"])
    with pytest.raises(RegrowError, match=r"prune is not done; nothing else that is set aside holds"):
        restore(done, done.asides()[-1].name, print)


def test_a_value_that_earlier_stages_read_otherwise_is_refused(done):
    done.set_aside(BACK)
    for stage in ("data", "score", "prune"):
        record = done.record(stage)
        record["fingerprint"]["config"] |= {"model.dtype": "float32"} if stage == "prune" else {}
        done.finish(stage, record)
    with pytest.raises(RegrowError, match=r'model\.dtype: was "bfloat16", is "float32"$'):
        restore(done, "1", print)


def test_who_works_there_and_what_is_not_there_is_said(done):
    with pytest.raises(RegrowError, match="nothing is set aside as 001; there is nothing"):
        restore(done, "001", print)
    trained_again(done)
    with pytest.raises(RegrowError, match="nothing is set aside as train; there is 001"):
        restore(done, "train", print)
    with pytest.raises(RegrowError, match="not a run's folder"):
        restore(Run(Path("runs")), "1", print)
    before = contents(done.folder)
    with done.lock(), pytest.raises(RegrowError, match="run done is in use by host"):
        restore(done, "1", print)
    with claim(done, "step-00000004"), pytest.raises(RegrowError, match="export step-00000004 is being judged by host"):
        restore(done, "1", print)
    shutil.rmtree(done.stage("evaluate"))
    assert contents(done.folder) == before and [aside.name for aside in done.asides()] == ["001"]


def test_a_link_waits_for_its_chain_and_those_behind_it_are_named(done):
    link, chain = Run(Path(shutil.copytree(done.folder, "runs/long-1"))), Run(Path("runs/long"))
    assert chain_of(done) is None and chain_of(link) is None
    write_atomic(chain.folder / "config.yaml", "")
    link.set_aside(BACK)
    with chain.lock(), pytest.raises(RegrowError, match="run long is in use"):
        restore(link, "1", print)
    then = read_json(done.stage("train") / "stage.json")["fingerprint"]
    begun = {**then, "config": {**then["config"], "data.after": str(link.folder.resolve())}}
    write_json(Path("runs/long-2/train/progress/started.json"), begun)
    assert [run.name for run in followers(link)] == ["long-2"] and list(followers(done)) == []
    said = []
    restore(link, "1", said.append)
    assert said[-1] == "run long-2 goes on from this one, and was made of what is set aside now"


KILLED = """
import os, sys
from pathlib import Path
from pipeline.run import Run
from pipeline.stages.aside import restore
left, rename = int(sys.argv[1]), Path.rename
def counted(path, target):
    global left
    if left == 0:
        os._exit(7)
    left -= 1
    return rename(path, target)
Path.rename = counted
restore(Run(Path("runs/done")), "1", print)
"""


def test_killed_before_any_move_nothing_is_lost_and_the_same_command_goes_on(done, monkeypatch, tmp_path):
    """The exports' lines stand in a folder of a stage that comes back: they stay where they are."""
    done.set_aside(["evaluate", "report"])
    for name in ("curve.jsonl", "curve/lock", "results.json", "stage.json"):
        write_atomic(done.stage("evaluate") / name, name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    start, names = contents(done.folder), {*contents(done.folder), *contents(done.folder / "aside" / "001")}
    wanted = start | contents(done.folder / "aside" / "001")
    moves = 0
    while True:
        shutil.copytree("runs", tmp_path / f"{moves}" / "runs")
        monkeypatch.chdir(tmp_path / f"{moves}")
        status = subprocess.run([sys.executable, "-c", KILLED, str(moves)], stdout=subprocess.DEVNULL).returncode
        run = Run(Path("runs/done"))
        if status == 0:
            break
        assert status == 7
        there = [contents(folder) for folder in (run.folder, *run.asides())]
        assert names <= {name for one in there for name in one}, f"lost when killed before move {moves}"
        restore(run, "1", lambda line: None)
        assert contents(run.folder) == wanted, f"not whole again when killed before move {moves}"
        moves += 1
        monkeypatch.chdir(tmp_path)
    # results.json and stage.json go, two files of the curve go along, two folders come.
    assert moves == 6 and contents(run.folder) == wanted
    assert os.listdir("runs/done/aside") == ["002"]
