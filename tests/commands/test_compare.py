"""Runs are compared from their folders alone: what stands there is read as it is, and what cannot be is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.commands.compare import compare
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_atomic, write_json
from pipeline.run import Run
from tests import ROOT
from tests.reporting.arms import line
from tests.reporting.reading import Page

DONE = ROOT / "tests" / "stages" / "887a583" / "runs" / "done"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Two finished runs of small files in runs/, in the working directory; the second trained at another rate."""
    monkeypatch.chdir(tmp_path)
    first, second = (Run(Path(shutil.copytree(DONE, f"runs/{name}"))) for name in ("first", "second"))
    for run, rate, name in ((first, 0.001, "first"), (second, 0.5, "second")):
        config = run.folder / "config.yaml"
        text = config.read_text().replace("name: done", f"name: {name}")
        config.write_text(text.replace("learning_rate: 0.001", f"learning_rate: {rate}"))
    return [first, second]


def words_of(page: Path) -> str:
    return " ".join(Page(page.read_text(encoding="utf-8")).text.split())


def test_two_runs_in_the_terminal_and_on_a_page_beside_the_first(runs):
    said = compare([run.folder for run in runs], None).splitlines()
    head, first, second = (each.split() for each in said[:3])
    assert head[:4] == ["run", "blocks", "parameters", "tokens"]
    assert first[:4] == ["first", "3", "of", "4"] and second[0] == "second"
    # Perplexities of that release name no text: of which rows they are is not known, and they share no row.
    assert "300.4" in said[1] and "300.4" not in said[2]
    assert "held-out text was judged in 2 ways" in said[-2]
    page = Path("runs/compare.html")
    assert said[-1] == f"page: {os.path.relpath(page)}"
    words = words_of(page)
    assert "train.learning_rate 0.001 0.5" in words and "run.name" not in words
    assert "Held-out text. Bars are 95 % intervals over rows" in words, "training asked both the same"


def test_a_run_is_compared_with_what_it_was(runs):
    """What was set aside begins with training; the stages before it are the run's."""
    first, _ = runs
    first.set_aside(["train", "evaluate", "report"])
    for stage in ("train", "evaluate"):
        shutil.copytree(first.folder / "aside" / "001" / stage, first.stage(stage))
    said = compare([first.folder, first.folder / "aside" / "001"], None).splitlines()
    now, then = (each.split() for each in said[1:3])
    assert then[:3] == ["first,", "aside", "001"] and then[3:11] == now[1:9]
    shutil.rmtree(first.stage("prune"))
    with pytest.raises(RegrowError, match="stage prune is not done"):
        compare([first.folder / "aside" / "001", runs[1].folder], None)


def test_exports_that_were_judged_alike_are_compared_with_an_interval(runs):
    for number, run in enumerate(runs):
        shutil.rmtree(run.stage("evaluate"))
        write_atomic(
            run.stage("evaluate") / "curve.jsonl", json.dumps(line(4, f"{number}" * 64, 30.0 + 3 * number)) + "\n"
        )
    said = compare([run.folder for run in runs], Path("out/page.html"))
    assert "\u00d7\u202f1.10 (1.10 to 1.10)" in said.splitlines()[2], said
    assert "perplexity of the regrown models on held-out text;" in said
    assert "export of step 4" in words_of(Path("out/page.html"))


def test_a_chain_stands_for_its_last_run_and_counts_those_before(runs):
    first, second = runs
    first.folder.rename("runs/long-1")
    second.folder.rename("runs/long-2")
    last = Run(Path("runs/long-2"))
    record = last.record("train")
    record["result"] |= {"before": [{"run": "long-1", "tokens": 1024, "flops": 1.0, "removed": [1], "blocks": 3}]}
    last.finish("train", record)
    config = (last.folder / "config.yaml").read_text().replace("name: second", "name: long")
    config = config.replace("remove: 1\n", "remove: 2\n")
    write_atomic(Path("runs/long/config.yaml"), f"{config}chain: {{parts: 2}}\n")
    said = compare([Path("runs/long"), Path("runs/long-1")], Path("page.html")).splitlines()
    assert said[1].split()[0] == "long-2" and "2.05\u202fk" in said[1] and "1.02\u202fk" in said[2]
    # 83,460,096 FLOPs each, in records of a release that named the seconds otherwise.
    assert "1.7e8" in said[1] and "8.3e7" in said[2]
    assert "Not drawn over hours" not in words_of(Path("page.html"))
    shutil.rmtree("runs/long-1/train")
    said = compare([Path("runs/long"), Path("runs/long-1")], Path("page.html"))
    assert "1.7e8" not in said and "Not drawn over hours, because they are not recorded: long-2, long-1." in words_of(
        Path("page.html")
    )


def test_runs_of_one_name_are_told_apart_by_their_folders(runs):
    shutil.copytree(runs[0].folder, "other/first")
    said = compare([runs[0].folder, Path("other/first")], None)
    assert [each.split()[0] for each in said.splitlines()[1:3]] == ["runs/first", "other/first"]


def test_what_cannot_be_compared_is_refused(runs):
    first, second = (run.folder for run in runs)
    with pytest.raises(RegrowError, match="takes two runs or more"):
        compare([first], None)
    with pytest.raises(RegrowError, match="runs/first is named twice"):
        compare([first, second, first], None)
    with pytest.raises(RegrowError, match=r"runs: not a run's folder \(no config\.yaml in it\)"):
        compare([first, Path("runs")], None)
    with pytest.raises(RegrowError, match="--out runs: that is a folder"):
        compare([first, second], Path("runs"))
    shutil.rmtree(second / "prune")
    with pytest.raises(RegrowError, match="run second: stage prune is not done"):
        compare([first, second], None)
    write_json(second / "prune" / "prune.json", read_json(first / "prune" / "prune.json"))
    write_atomic(second / "train" / "stage.json", "{")
    with pytest.raises(RegrowError, match=r"second/train/stage\.json: damaged"):
        compare([first, second], None)
    assert not list(Path().glob("**/*.new"))
