"""The report stage: what the model card is told of the folder that it stands in."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

from pipeline.config import load_config
from pipeline.files import read_json
from pipeline.run import Run
from pipeline.stages.report import _loading, flops_formula, recipe_of, work
from pipeline.world import ALONE
from tests.own_code import write_own_tokenizer


def test_the_card_is_told_of_a_tokenizer_s_own_code(tiny_config, tiny_model, tmp_path):
    export = Path(shutil.copytree(tiny_model, tmp_path / "export"))
    write_own_tokenizer(export)
    found = [
        _loading(load_config(tiny_config, [f"model.trust_remote_code={leave}"]), export)["custom_code"]
        for leave in ("true", "false")
    ]
    assert found == [["own_tokens.py"], []]


def test_the_card_is_told_of_a_section_where_the_run_used_it(tiny_config):
    def recipe(*overrides):
        return recipe_of(load_config(tiny_config, overrides))

    plain = recipe()
    assert plain["heal"] == "none" and not {"healing", "lora", "distill"} & set(plain)
    healed = recipe("train.heal=local", "train.healing.ridge=0.5")
    assert healed["healing"]["ridge"] == 0.5 and not {"lora", "distill"} & set(healed)
    assert recipe("train.method=lora")["lora"]["rank"] == 8
    assert recipe("train.objective=both")["distill"]["weight"] == 0.5
    assert "weight" not in recipe("train.objective=distill")["distill"], "it weighs nothing there"


def test_the_card_is_told_of_no_folder_more_than_its_name(tiny_config, tmp_path):
    folders = (f"train.init={tmp_path}/private/begun", f"train.distill.teacher={tmp_path}/private/taught/")
    kept = ("train.distill.samples=12", f"train.distill.store={tmp_path}/private/answers")
    recipe = recipe_of(load_config(tiny_config, [*folders, *kept, "train.objective=distill"]))
    assert (recipe["init"], recipe["distill"]["teacher"], recipe["distill"]["samples"]) == ("begun", "taught", 12)
    assert "private" not in str(recipe) and "store" not in recipe["distill"]
    dense = recipe_of(load_config(tiny_config, ["train.objective=both"]))
    assert (dense["init"], dense["distill"]["teacher"]) == ("pruned", "dense")


def test_the_formula_is_that_of_what_was_trained(tiny_config):
    full, lora = (load_config(tiny_config, [f"train.method={method}"]) for method in ("full", "lora"))
    attention = " + 12 x blocks x width x row length"
    assert flops_formula(full, 0.0) == f"6 x (parameters without the input embedding){attention}, for each token"
    own = f"4 x (frozen parameters without the input embedding) + 6 x (parameters of adapters){attention}"
    assert flops_formula(lora, 0.0) == f"{own}, for each token"
    assert flops_formula(lora, 1e9).startswith(f"{own} + the teacher's forward: 2 x (its parameters")


def test_a_page_and_its_card_are_told_how_flops_were_counted(copy_until, tiny_config, tmp_path):
    """By a stage that reports a run whose record says that a teacher stood beside training."""
    folder = copy_until("evaluate", tmp_path)
    record = folder / "train" / "stage.json"
    written = read_json(record)
    written["result"]["teacher_flops_per_token"] = 1e6
    record.write_text(json.dumps(written))
    config = load_config(tiny_config, [f"run.folder={tmp_path / 'runs'}"])
    work(config, Run(folder), ALONE, lambda line: None)
    for made in ("report/index.html", "report/README.md"):
        assert "+ the teacher's forward: 2 x" in html.unescape((folder / made).read_text()), made
    assert "distill" not in (folder / "report" / "README.md").read_text(), "the config has no teacher"
