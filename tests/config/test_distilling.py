"""What is learnt from a teacher: the config's words and bounds."""

from __future__ import annotations

import pytest

from pipeline.config import load_config
from tests.config.kit import refused


def test_by_default_nobody_teaches(file):
    train = load_config(file).train
    assert (train.objective, train.distill.teacher, train.distill.weight) == ("lm", "dense", 0.5)


@pytest.mark.parametrize(
    "override",
    ["weight=0", "weight=1", "temperature=0", "hidden=-1", "teacher=''", "sharded=2", "samples=0", "samples=256"],
)
def test_what_makes_no_loss_is_refused(file, override):
    assert f"train.distill.{override.partition('=')[0]}" in refused(file, f"train.distill.{override}")


def test_where_the_teacher_stands_may_differ_on_a_resume(file):
    known = load_config(file).read_by("train")
    for free in ("sharded=true", "offloaded=true", "store=answers"):
        assert load_config(file, [f"train.distill.{free}"]).read_by("train") == known
    known_samples = load_config(file, ["train.distill.samples=50", "train.distill.store=answers"]).read_by("train")
    assert known_samples != known, "a changed train.distill.samples passes unseen"
    for fixed in ("objective=both", "distill.weight=0.2", "distill.temperature=2", "distill.hidden=1"):
        assert load_config(file, [f"train.{fixed}"]).read_by("train") != known, f"a changed train.{fixed} passes unseen"


def test_samples_need_a_folder_and_leave_states_alone(file):
    store = "train.distill.store=answers"
    assert "set store" in refused(file, "train.distill.samples=50")
    asked = load_config(file, ["train.distill.samples=50", store]).train.distill
    assert (asked.samples, str(asked.store)) == (50, "answers")
    (message,) = [refused(file, "train.distill.samples=50", store, "train.distill.hidden=0.1")]
    assert "hidden 0.1: states are not kept with samples" in message
