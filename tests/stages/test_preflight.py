"""What is refused before any stage starts: nothing of a run is made, or changed, by what cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands.plan import plan
from pipeline.config import STAGES, load_config
from pipeline.data.tokens import load_tokenizer
from pipeline.errors import RegrowError
from pipeline.launch import Place
from pipeline.stages.preflight import preflight
from pipeline.stages.stage import Stage, load_stage

PLACE = Place()


@pytest.fixture
def done(lengthen, copy_until, tmp_path) -> tuple[Path, Path]:
    """(config, run folder) of a run that is done to the end."""
    return lengthen(tmp_path), copy_until("report", tmp_path)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("prune.remov=9", ["override 'prune.remov=9'", "unknown key 'prune.remov'", "did you mean 'prune.remove'?"]),
        ("model.path=no/such/folder", ["model.path 'no/such/folder'", "no such folder"]),
        ("prune.remove=7", ["remove 7", "5 of 8 blocks may go, 3 are protected", "remove fewer or protect fewer"]),
        ("prune.blocks=[2,8]", ["[2, 8]", "the model has blocks 0 to 7"]),
        ("prune.parameters=1000", ["parameters 1,000", "set a larger target or protect fewer"]),
        ("train.micro_batch=3", ["global batch", "8", "micro-batch", "3"]),
        ("train.processes=5", ["global batch", "5 processes"]),
        ("train.warmup_steps=24", ["train.warmup_steps 24", "the run has 24 steps"]),
        ("data.lanes=7", ["data.lanes 7 does not divide by 2 processes"]),
        ("data.held_out=null", ["data.held_out is not set", "evaluate"]),
        ("model.dtype=float16", ["model.dtype float16", "bfloat16"]),
        ("data.sources.0.text_key=content", ["example_train_0.jsonl.zst", "content"]),
        ("data.held_out.path=no/such/place/at/all", ["no/such/place/at/all", "no such file or folder"]),
        ("data.separator=<end>", ["data.separator '<end>'", "not a token"]),
        ("run.folder=/sys/regrow", ["/sys/regrow/tiny", "cannot be written", "set run.folder"]),
        ("run.folder=tests/conftest.py", ["tests/conftest.py cannot be written (Not a directory)", "set run.folder"]),
        (f"run.name={'n' * 300}", ["cannot be written (File name too long)"]),
        ("run.name=a/b", ["run.name: only letters, digits"]),
        ("run.name=", ["run.name"]),
    ],
)
def test_bad_input_is_refused_before_any_stage_starts(refused, lengthen, tmp_path, override, parts):
    message = refused("run", lengthen(tmp_path), override)
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    left = [path.name for path in tmp_path.glob("runs/*")]
    assert not left, f"{left} was made, though {override} cannot work"


def test_what_stands_in_a_stage_s_place_is_refused_by_a_single_stage_too(refused, lengthen, copy_until, tmp_path):
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    (run / "train").write_text("not a folder")
    before = sorted(path.name for path in run.iterdir())
    message = refused("train", config)
    assert f"{run}/train cannot be written (Not a directory)" in message
    assert sorted(path.name for path in run.iterdir()) == before, "a refused command wrote into the run"


def test_what_is_done_need_not_be_possible_again(here, done):
    """A batch that does not divide here is no reason to refuse a run that has been trained elsewhere."""
    status, out, message = here("run", done[0], "train.micro_batch=3")
    assert (status, out.count("done before, skipped")) == (0, 6), message


def test_an_empty_corpus_is_refused(refused, lengthen, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused("run", lengthen(tmp_path), f"data.sources.0.path={tmp_path}/empty")
    assert f"data.sources.0 '{tmp_path}/empty': no intact .jsonl" in message
    assert not list(tmp_path.glob("runs/tiny/*/stage.json"))


def test_bad_input_as_the_shell_sees_it(regrow, lengthen, tmp_path):
    for override in ("prune.remov=9", "train.micro_batch=3"):
        command = regrow("run", lengthen(tmp_path), override)
        assert command.wait() == 1, f"exit status {command.process.returncode} for {override}"
        assert command.output.startswith("regrow: "), command.output
        assert command.output.count("\n") == 1, f"not one line:\n{command.output}"


def test_it_writes_nothing(tiny_config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    notes = preflight(STAGES, load_config(tiny_config), PLACE)
    assert sorted(tmp_path.rglob("*")) == before, "what is only looked at was written"
    assert all(isinstance(note, str) for note in notes)


def test_only_what_is_due_is_looked_at(tiny_config):
    """A model that is not there is no reason to refuse stages that do not read it; and each refuses its own."""
    config = load_config(tiny_config, ["model.path=no/such/folder"])
    for stages in (["train"], ["report"], ["train", "report"]):
        assert not any(load_stage(name).reads_model for name in stages), f"{stages} read the model now"
        preflight(stages, config, PLACE)
    for name in STAGES:
        if load_stage(name).reads_model:
            with pytest.raises(RegrowError, match=r"model\.path 'no/such/folder': no such folder"):
                preflight(["report", name], config, PLACE)


def test_each_due_stage_s_check_is_asked_with_what_is_known(tiny_config, monkeypatch):
    """Its notes come in the order of the stages."""
    asked = []

    def load(name: str) -> Stage:
        def check(ahead):
            asked.append((name, ahead))
            return [f"of {name}"]

        return replace(load_stage(name), check=check)

    monkeypatch.setattr("pipeline.stages.preflight.load_stage", load)
    notes = preflight(["score", "prune"], load_config(tiny_config), PLACE)
    assert notes[:2] == ["of score", "of prune"] and [name for name, _ in asked] == ["score", "prune"]
    ahead = asked[0][1]
    assert ahead is asked[1][1] and ahead.due == {"score", "prune"} and ahead.encoder("Kraków")
    assert {value.device.type for value in ahead.model.parameters()} == {"meta"}, "weights were loaded"
    asked.clear()
    preflight(["report"], load_config(tiny_config), PLACE)
    assert (asked[0][1].encoder, asked[0][1].model) == (None, None), "the model was read for a stage that does not"


def test_the_tokenizer_is_read_once(tiny_config, monkeypatch):
    """By whatever stages, and by plan, which looks at the same."""
    loads = []
    monkeypatch.setattr(
        "pipeline.data.tokens.load_tokenizer", lambda *given: loads.append(given) or load_tokenizer(*given)
    )
    config = load_config(tiny_config)
    for look in (lambda: preflight(STAGES, config, PLACE), lambda: plan(config)):
        loads.clear()
        look()
        assert len(loads) == 1, loads


def test_data_of_tasks_that_an_offline_machine_lacks_end_a_run_before_its_first_stage(
    tiny_config, tmp_path, refused, monkeypatch
):
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for asked in ("evaluate.tasks.names=[piqa]", "evaluate.during={every: 4, tasks: [piqa]}"):
        message = refused("run", tiny_config, asked)
        assert "the data of piqa cannot be had" in message and "evaluate.tasks.data" in message
    assert not (tmp_path / "runs").exists(), "work was begun"
