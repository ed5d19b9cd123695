"""The train section: the mission's recipe by default, and what does not go together."""

from __future__ import annotations

import pytest

from pipeline.config import ConfigError, load_config


def test_the_recipe_is_the_mission_s(file):
    train = load_config(file).train
    assert (train.betas, train.learning_rate, train.weight_decay) == ((0.9, 0.95), 1e-4, 0.1)
    assert (train.global_batch, train.micro_batch, train.zero_stage, train.init) == (512, 2, 1, "pruned")


def test_a_rate_that_rises_to_its_end_is_refused(file):
    with pytest.raises(ConfigError, match=r"final_learning_rate 0\.01 is above learning_rate 0\.0001"):
        load_config(file, ["train.final_learning_rate=0.01"])


def test_what_needs_known_weights_is_not_begun_from_scratch(file):
    for method in ("train.method=lora", "train.heal=local"):
        with pytest.raises(ConfigError, match="init is random"):
            load_config(file, [method, "train.init=random"])


def test_where_training_begins_is_read_by_it_alone(file):
    before, after = load_config(file), load_config(file, ["train.init=runs/first"])
    assert before.read_by("train") != after.read_by("train")
    assert before.read_by("prune") == after.read_by("prune")
    with pytest.raises(ConfigError, match=r"train\.init"):
        load_config(file, ["train.init=''"])
