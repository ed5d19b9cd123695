"""One model judged: figures that are kept are those of the same model alone."""

from __future__ import annotations

import shutil

import torch

from pipeline.config import load_config
from pipeline.evaluation.figures import Figures
from pipeline.evaluation.tasks.scores import Judged
from pipeline.evaluation.windows import TextRows
from pipeline.files import hash_file
from pipeline.stages import judging
from pipeline.world import ALONE


def test_a_model_is_what_its_files_say_and_how_it_is_loaded(tiny_config, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = load_config(tiny_config)
    known = judging.what_it_is(config, folder, hash_file)
    (folder / "README.md").write_text("a card")
    assert judging.what_it_is(config, folder, hash_file) == known, "a card changes what a model computes"
    other = load_config(tiny_config, ["model.dtype=float32"])
    assert judging.what_it_is(other, folder, hash_file) != known
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert judging.what_it_is(config, folder, hash_file) != known


def test_a_text_that_was_judged_is_not_judged_again_and_another_is(tiny_config, tiny_model, tmp_path, monkeypatch):
    config, turns = load_config(tiny_config), []
    measure = judging.perplexity
    monkeypatch.setattr(judging, "perplexity", lambda *args, **how: turns.append(1) or measure(*args, **how))
    model = judging.stored_model(config, tiny_model, ALONE, tmp_path).load("cpu")
    figures = Figures(tmp_path, ALONE)
    identity = judging.what_it_is(config, tiny_model, hash_file)
    begin = torch.ones(3, dtype=torch.int64)
    first, second = (TextRows(torch.arange(30).view(3, 10) + n, begin, {"bos": "none"}) for n in (5, 6))

    def judge(identity=identity, **texts):
        return judging.perplexities(config, model, identity, texts, figures, ALONE)

    one = judge(first=first)
    both = judge(first=first, again=first, second=second)
    assert len(turns) == 2 and both["first"] == one["first"] == both["again"] != both["second"]
    assert both["first"]["bos"] == "none" and both["first"]["micro_batch"] == 8
    judge(identity={"files": {}}, first=first)
    assert len(turns) == 3, "another model has these figures"


def test_figures_are_said_in_a_line():
    assert judging.task_words(Judged({"sums": {"value": 0.25}, "piqa": {"value": 1}})) == "sums 0.250, piqa 1.000"
    assert judging.perplexity_words({"held_out": {"value": 20.049}}) == "perplexity of held_out 20.05"
