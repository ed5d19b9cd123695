"""A run of an earlier release: what is done stands, and what cannot be read is refused by its name, with a way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.commands.status import look_at
from pipeline.config import STAGES, load_config
from pipeline.run import Run
from pipeline.stages.stage import load_stage
from pipeline.stages.standing import config_differences, differences, is_due


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of a whole run of commit 887a583, with its config, model and text, in the working directory."""
    shutil.copytree(Path(__file__).parent / "887a583", tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return Run(Path("runs/done"))


def begun(run: Run, stage: str) -> None:
    """Make the run one that was killed in ``stage``."""
    for later in STAGES[STAGES.index(stage) + 1 :]:
        shutil.rmtree(run.stage(later))
    (run.stage(stage) / "stage.json").unlink()


def test_an_old_run_has_a_status(old):
    lines = [line.split()[:2] for line in look_at(old.folder).text.splitlines()[2 : 2 + len(STAGES)]]
    assert lines == [[stage, "done"] for stage in STAGES]
    begun(old, "train")
    # Its config.yaml has keys that stand elsewhere now.
    assert "step 4 of 4, loss 5.7058" in look_at(old.folder).text


def test_what_can_be_read_stands_and_what_cannot_is_refused(old, refused, here):
    """Text judged by one protocol has results of another form: nothing else of the old run is stale."""
    message = refused("run", "old.yaml")
    assert "stage evaluate is done, but not with this config:\n  format of the stage: was 1, is " in message
    assert "Go on with that version, or take another run.name, or add --redo evaluate" in message
    assert message.count("\n") == 3, message
    status, out, _ = here("run", "old.yaml", "--until", "train")
    assert status == 0 and out.count("done before, skipped") == 4, out
    assert "output of" not in refused("report", "old.yaml") and not (old.folder / "aside").exists()


@pytest.mark.parametrize("damage", ["{}", "[]", "null", '{"stage": "score", "fingerprint": []}', '"score"'])
@pytest.mark.parametrize("words", [("status", "runs/done"), ("run", "old.yaml"), ("compare", "runs/done", "again")])
def test_a_record_that_is_none_is_named(old, refused, damage, words):
    shutil.copytree(old.folder, "again")
    (old.stage("score") / "stage.json").write_text(damage)
    message = refused(*words)
    assert "runs/done/score/stage.json: not a stage's record (missing, or of another kind: " in message, message
    assert message.endswith("result, outputs, seconds, finished); move it aside and redo its stage\n")


def test_what_cannot_be_read_is_refused_before_a_stage_ahead_of_it_works(old, refused):
    """Scoring one more criterion may take hours."""
    log = (old.folder / "log.txt").read_text()
    message = refused("run", "old.yaml", "score.criteria=[block_influence, ppl, linear]")
    assert "stage evaluate is done, but not with this config:\n  format of the stage: was 1, is " in message
    assert " score: " not in (old.folder / "log.txt").read_text().removeprefix(log)


@pytest.mark.parametrize("stage", ["score", "train"])
def test_what_was_begun_by_another_format_is_refused(old, refused, stage):
    begun(old, stage)
    message = refused("run", "old.yaml")
    assert f"stage {stage} was begun with another config:\n  format of the stage: was 2, is " in message
    assert f"add --redo {stage}" in message and message.count("\n") == 3, message


def test_a_key_that_is_changed_from_its_default_is_named_in_an_old_run(old, refused):
    message = refused("run", "old.yaml", "data.special_tokens=parse", "--until", "score")
    assert 'data.special_tokens: was "plain", is "parse"' in message


def test_a_begun_stage_of_this_format_goes_on_when_a_key_came_later(old):
    train, config = load_stage("train"), load_config("old.yaml")
    then = json.loads((old.stage("train") / "stage.json").read_text())["fingerprint"] | {"format": train.format}
    assert "train.objective" not in then["config"]
    now = {**then, "config": config.read_by("train")}
    assert differences(train, then, now, old, train.format) == []
    newer = {**then, "format": train.format + 1}
    assert len(differences(train, newer, now, old, train.readable_from)) == 1, "a later release's files were believed"
    assert config_differences("train", then, config) == []


def test_only_what_does_itself_anew_is_due_in_a_done_run(old):
    changed = ["report.title=Other", "prune.remove=2", "score.criteria=[block_influence, ppl, linear]"]
    config = load_config("old.yaml", changed)
    assert [stage for stage in STAGES if is_due(stage, config, old)] == ["score", "report"]
    assert not any(is_due(stage, load_config("old.yaml", ["score.criteria=[ppl]"]), old) for stage in STAGES)


@pytest.mark.slow
def test_an_old_run_goes_on_to_a_page_of_today(old, here):
    begun(old, "train")
    status, out, message = here("run", "old.yaml", "--redo", "train")
    assert status == 0, message
    assert out.count("done before, skipped") == 3 and (old.stage("report") / "index.html").exists()


@pytest.mark.slow
def test_what_an_old_run_has_trained_is_evaluated_and_reported(old, here):
    status, out, message = here("run", "old.yaml", "--redo", "evaluate")
    assert status == 0, message
    assert out.count("done before, skipped") == 4 and (old.stage("report") / "index.html").exists()


@pytest.mark.slow
def test_an_old_run_s_pruned_model_is_taught(old, here):
    """Its prune.json does not say what runs before it removed: there were none."""
    begun(old, "train")
    status, _, message = here("train", "old.yaml", "--redo", "train", "train.objective=both")
    assert status == 0, message
