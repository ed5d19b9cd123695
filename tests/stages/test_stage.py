"""What a stage is: each where it is looked for, behind what it reads, and declared as the others expect."""

from __future__ import annotations

import inspect

import pytest

from pipeline.config import STAGES, load_config
from pipeline.launch import Place
from pipeline.stages.stage import Ahead, Stage, load_stage, nothing_to_say


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_found_by_its_name_behind_what_it_reads(name):
    stage = load_stage(name)
    assert isinstance(stage, Stage) and stage.name == name
    before = STAGES[: STAGES.index(name)]
    assert set(stage.upstream) <= set(before), f"{name} reads {stage.upstream}, of which not all come before it"
    assert len(set(stage.upstream)) == len(stage.upstream) and stage.format >= 1


@pytest.mark.parametrize("name", STAGES)
def test_its_functions_take_what_they_are_given(name):
    """As sequence and preflight call them; nobody else would notice before a run is under way."""
    stage = load_stage(name)
    for function, count in ((stage.work, 4), (stage.inputs, 2), (stage.launched, 1), (stage.check, 1)):
        inspect.signature(function).bind(*range(count))


def test_who_shares_work_is_said_of_the_config(tiny_config):
    """The stages with several processes are those whose work is divided, and no stage that one process does alone."""
    config = load_config(tiny_config)
    assert [name for name in STAGES if load_stage(name).launched(config)] == ["score", "train", "evaluate"]


def test_a_stage_without_a_check_says_nothing(tiny_config):
    assert nothing_to_say(Ahead(load_config(tiny_config), Place(), frozenset({"report"}), None, None)) == []


def test_no_stage_of_another_name_is_loaded():
    with pytest.raises(ModuleNotFoundError):
        load_stage("prunes")
