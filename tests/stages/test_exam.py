"""What exports are asked: held-out rows as the loop has them, the same for all, and resumed behind a kill."""

from __future__ import annotations

import os
import shutil

import pytest

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.launch import Place
from pipeline.life import Teller
from pipeline.run import Run
from pipeline.stages import data, exam, judging
from pipeline.stages.curve import working_folder
from pipeline.stages.exam import IN_TRAINING, Exam, asked_of_exports, check_exam
from pipeline.world import World

SAY = Teller(lambda line: None, lambda what: None)
SUMS = ["evaluate.tasks.names=[sums]", "evaluate.tasks.limit=4"]


@pytest.fixture(scope="module")
def world():
    return World.join(Place(local_world=64))


@pytest.fixture
def run(tiny_config, tmp_path, tiny_model, world) -> Run:
    """A run whose data are listed, with an export that is the dense model."""
    run = Run(tmp_path / "run")
    data.work(load_config(tiny_config), run, world, lambda line: None)
    shutil.copytree(tiny_model, run.stage("train") / "exports" / "step-00000012")
    return run


@pytest.fixture
def export(run):
    return run.stage("train") / "exports" / "step-00000012"


def test_the_protocol_is_that_of_rows_and_tasks_alone(tiny_config, run, export, world):
    def protocol(*overrides):
        return Exam(load_config(tiny_config, overrides), run, export, world, SAY).protocol

    same = protocol()
    assert protocol("train.learning_rate=2e-3", "evaluate.processes=1") == same
    others = [
        "evaluate.perplexity.held_out.rows=5",
        "train.evaluate_rows=3",
        "evaluate.micro_batch=4",
        "model.dtype=float32",
        *SUMS[:1],
    ]
    assert len({same, *map(protocol, others)}) == 1 + len(others)


def test_tasks_by_another_version_of_what_asks_them_are_another_protocol(tiny_config, run, export, world, monkeypatch):
    def protocol(*overrides):
        return Exam(load_config(tiny_config, overrides), run, export, world, SAY).protocol

    without, asked = protocol(), protocol(*SUMS)
    monkeypatch.setattr(exam, "harness", lambda: "lm-eval 0.4.14")
    assert protocol() == without and protocol(*SUMS) != asked


def test_what_was_finished_before_a_kill_is_taken_as_it_is(tiny_config, run, export, world, monkeypatch):
    config = load_config(tiny_config, SUMS)
    asked = Exam(config, run, export, world, SAY)
    sitting = asked.sitting(export)
    assert sitting.step == 12
    found = asked.judge(sitting, SAY)
    assert list(found["perplexity"]) == ["held_out", IN_TRAINING] and found["tasks"]["sums"]["items"] == 4
    monkeypatch.setattr(judging, "perplexity", lambda *args, **how: pytest.fail("a perplexity was measured again"))
    assert Exam(config, run, export, world, SAY).judge(sitting, SAY) == found
    asked.clear(sitting)
    kept = [path.name for path in next(working_folder(run).iterdir()).iterdir()]
    assert kept == ["tasks"], "what served the resume is still there"


def test_an_export_that_changes_while_it_is_judged_has_no_figures(tiny_config, run, export, world):
    sitting = Exam(load_config(tiny_config), run, export, world, SAY).sitting(export)
    (export / "README.md").write_text("a card")
    sitting.require_unchanged()
    status = (export / "model.safetensors").stat()
    os.utime(export / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(RegrowError, match="written anew, or moved, while it was judged"):
        sitting.require_unchanged()
    shutil.rmtree(export)
    with pytest.raises(RegrowError, match="written anew, or moved"):
        sitting.require_unchanged()


@pytest.mark.parametrize(
    ("overrides", "tasks", "limit"),
    [
        ([], ("piqa",), 5),
        (["evaluate.during.tasks=[boolq]"], ("boolq",), 100),
        (["evaluate.during.every=4", "evaluate.during.limit=7"], ("sums",), 7),
    ],
)
def test_exports_are_asked_what_is_asked_between_steps_where_anything_is(tiny_config, overrides, tasks, limit):
    stated = ["evaluate.tasks={names: [piqa], limit: 5}", *overrides]
    asked = asked_of_exports(load_config(tiny_config, stated))
    assert (asked.tasks, asked.limit) == (tasks, limit)


def test_what_cannot_be_asked_is_refused(tiny_config, export):
    with pytest.raises(RegrowError, match=r"data\.held_out is not set"):
        check_exam(load_config(tiny_config, ["data.held_out=null"]), export)
    with pytest.raises(RegrowError, match="no task 'sumz'"):
        check_exam(load_config(tiny_config, ["evaluate.during.tasks=[sumz]"]), export)
    with pytest.raises(RegrowError, match=r"evaluate\.perplexity\.own\.text '/no/such': no such file"):
        check_exam(load_config(tiny_config, ["evaluate.perplexity.own.text=/no/such"]), export)
