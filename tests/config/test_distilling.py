"""What is learnt from a teacher: the config's words and bounds."""

from __future__ import annotations

import pytest

from pipeline.config import load_config
from tests.config.kit import refused


def test_by_default_nobody_teaches(file):
    train = load_config(file).train
    assert (train.objective, train.distill.teacher, train.distill.weight) == ("lm", "dense", 0.5)


@pytest.mark.parametrize("override", ["weight=0", "weight=1", "temperature=0", "hidden=-1", "teacher=''", "sharded=2"])
def test_what_makes_no_loss_is_refused(file, override):
    assert f"train.distill.{override.partition('=')[0]}" in refused(file, f"train.distill.{override}")


def test_where_the_teacher_stands_may_differ_on_a_resume(file):
    known = load_config(file).read_by("train")
    for free in ("sharded=true", "offloaded=true"):
        assert load_config(file, [f"train.distill.{free}"]).read_by("train") == known
    for fixed in ("objective=both", "distill.weight=0.2", "distill.temperature=2", "distill.hidden=1"):
        assert load_config(file, [f"train.{fixed}"]).read_by("train") != known, f"a changed train.{fixed} passes unseen"
