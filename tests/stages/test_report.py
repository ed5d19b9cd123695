"""The report stage: what the model card is told of the folder that it stands in."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.config import load_config
from pipeline.stages.report import _loading, recipe_of
from tests.own_code import write_own_tokenizer


def test_the_card_is_told_of_a_tokenizer_s_own_code(tiny_config, tiny_model, tmp_path):
    export = Path(shutil.copytree(tiny_model, tmp_path / "export"))
    write_own_tokenizer(export)
    found = [
        _loading(load_config(tiny_config, [f"model.trust_remote_code={leave}"]), export)["custom_code"]
        for leave in ("true", "false")
    ]
    assert found == [["own_tokens.py"], []]


def test_the_card_is_told_of_healing_where_there_was_any(tiny_config):
    plain = recipe_of(load_config(tiny_config))
    assert plain["heal"] == "none" and not [key for key in plain if key.startswith("healing")]
    healed = recipe_of(load_config(tiny_config, ["train.heal=local", "train.healing.ridge=0.5"]))
    assert (healed["heal"], healed["healing.ridge"]) == ("local", 0.5) and "healing" not in healed
