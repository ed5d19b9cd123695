"""One more criterion: it alone is scored, what follows another stays, and a kill on the way loses nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.files import hash_json, read_json, write_json
from pipeline.run import Run
from pipeline.stages.growing import earlier_outputs, grows, kept_before, lineage, progress_of, reopen
from pipeline.stages.stage import load_stage
from tests.records import stage_record

MORE = "score.criteria=[euclidean, ppl, block_influence]"


def test_more_of_the_one_key_is_growth_and_nothing_else():
    score, then = load_stage("score"), {"score.criteria": ["ppl"], "score.seed": 1}
    assert grows(score, then, {**then, "score.criteria": ["linear", "ppl"]})
    assert grows(score, {**then, "score.criteria": ["ppl", "linear"]}, {**then, "score.criteria": ["linear", "ppl"]})
    assert not grows(score, then, then)
    assert not grows(score, then, {**then, "score.criteria": ["linear"]})
    assert not grows(score, then, {"score.criteria": ["linear", "ppl"], "score.seed": 2})
    assert not grows(load_stage("prune"), {"prune.remove": 2}, {"prune.remove": 3})


def test_a_stage_that_grows_is_done_until_all_that_it_had_is_kept(tmp_path, monkeypatch):
    run, score = Run(tmp_path), load_stage("score")
    record = stage_record(outputs={"a": 1}, seconds=2.0, finished="then")
    write_json(run.stage("score") / "scores.json", {"criteria": {"ppl": {"scores": [1.5]}}})
    run.finish("score", record)
    assert progress_of(run, "score", ["linear"]) == tmp_path / "score" / "progress"
    assert kept_before(run, "score") == {} == lineage(run, "score")
    with monkeypatch.context() as patched:
        patched.setattr(Run, "unfinish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reopen(score, run, record, {"new": 1})
    assert run.record("score") == record
    reopen(score, run, record, {"new": 1})
    assert run.record("score") is None and read_json(run.stage("score") / "progress" / "started.json") == {"new": 1}
    assert kept_before(run, "score") == {"ppl": {"scores": [1.5]}}
    assert progress_of(run, "score", ["linear", "taylor"]).name == "with-linear-taylor"
    grown = lineage(run, "score")
    assert earlier_outputs(grown) == {hash_json({"a": 1})} and grown["before"][0]["seconds"] == 2.0
    assert earlier_outputs(None) == set()


def test_a_criterion_more_is_scored_alone_and_what_follows_another_stays(here, tmp_path, monkeypatch):
    shutil.copytree(Path(__file__).parent / "887a583", tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    run = Run(Path("runs/done"))
    before = {stage: run.record(stage) for stage in ("score", "prune", "train")}
    scored = read_json(run.stage("score") / "scores.json")["criteria"]
    status, out, message = here("run", "old.yaml", MORE, "--until", "train")
    assert status == 0, message
    assert "[score] grows (score.criteria: was " in out
    assert all(f"[{stage}] done before, skipped" in out for stage in ("data", "prune", "train")), out
    assert "scoring 4 blocks by euclidean on 3 sequences" in (run.folder / "log.txt").read_text()
    now = read_json(run.stage("score") / "scores.json")["criteria"]
    assert list(now) == ["euclidean", "ppl", "block_influence"] and {**now, **scored} == now
    assert now["euclidean"]["scores"] == pytest.approx(_scored(run), rel=1e-3)
    order = (run.stage("score") / "block_order.csv").read_text().strip().split(",")
    assert list(map(int, order)) == now["euclidean"]["order"], "not by the first criterion that is asked for"
    assert all(run.record(stage) == before[stage] for stage in ("prune", "train"))
    assert run.record("score")["before"][0]["outputs"] == hash_json(before["score"]["outputs"])
    # What is done now is skipped, pruning by what came is another choice, and so is anything else of scoring.
    assert here("run", "old.yaml", MORE, "--until", "train")[1].count("done before, skipped") == 4
    message = here("run", "old.yaml", MORE, "prune.criterion=euclidean")[2]
    assert 'prune.criterion: was "ppl", is "euclidean"' in message and "score changed" not in message
    assert "score.seed: was 1234, is 7" in here("run", "old.yaml", MORE, "score.seed=7")[2]


def _scored(run: Run) -> list[float]:
    """The criterion by the library, from the ids that the stage drew."""
    import torch

    from pipeline import score_blocks
    from pipeline.model.load import load_model

    ids = torch.tensor(read_json(run.stage("score") / "calibration.json")["input_ids"])
    model = load_model(Path("model"), dtype="bfloat16", device=torch.device("cpu"))
    return score_blocks(model, ids, "euclidean")["euclidean"]["scores"]
