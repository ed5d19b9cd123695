"""Records of earlier releases: keys that came later count as their defaults, keys that moved are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import STAGES, Config, ConfigError, completed, dump_config, load_config, load_written, recalled
from tests.config.kit import write


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "text.txt").touch()
    return load_config(
        write(
            tmp_path / "one.yaml",
            "run: {name: one}\nmodel: {path: model}\ndata: {sources: [{path: text}, {path: more}]}\n"
            "prune: {remove: 2}\ntrain: {tokens: 100}\nevaluate: {perplexity: {other: {text: text.txt}}}\n",
        )
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_of_today_may_be_missing_and_counts_as_its_default(config, stage):
    whole = json.loads(json.dumps(config.read_by(stage)))
    assert completed(whole, stage) == whole
    # What has no default was always there.
    least = {name: whole[name] for name in whole if name in ("data.sources", "train.tokens")}
    for source in least.get("data.sources", ()):
        for key in ("instruction", "weight", "files"):
            del source[key]
    least |= {name: {"text": "text.txt"} for name in whole if name == "evaluate.perplexity.other"}
    stated = {"prune.remove": 2} if stage == "prune" else {}
    assert completed(least | stated, stage) == config.read_by(stage)


def test_keys_that_moved_are_compared_at_their_place_and_unknown_ones_are_kept():
    then = {"evaluate.perplexity.rows": 8, "evaluate.micro_batch": 4, "train.seed": 1, "gone.key": 2}
    found = completed(then, "evaluate")
    assert found["evaluate.perplexity.held_out.rows"] == 8 and "evaluate.perplexity.rows" not in found
    assert "evaluate.micro_batch" not in found and "train.seed" not in found, "keys that the stage does not compare"
    assert found["gone.key"] == 2


def test_a_written_config_is_read_whichever_release_wrote_it(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_written(path) == config
    old = dump_config(config).replace("  perplexity:\n", "  perplexity:\n    rows: 8\n")
    path.write_text(f"{old}gone: {{key: 1}}\n".replace("\ntrain:\n", "\ntrain:\n  gone: true\n"))
    assert load_written(path).evaluate.perplexity.held_out.rows == 8
    path.write_text("run: {name: one}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: model: required, and not set"):
        load_written(path)
    for damaged in ("run: {name: one", "", "[]", "\0"):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match=r"config\.yaml: .*a run's config\.yaml was damaged"):
            load_written(path)


def test_a_config_is_recalled_from_what_stages_were_made_from(config):
    """What no stage among them read stays; texts and cuts are the records' alone."""
    then = config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": "another", "dtype": "float32"}),
            "prune": config.prune.model_copy(update={"remove": None, "ratio": 0.5}),
            "train": config.train.model_copy(update={"tokens": 200, "zero_stage": 3}),
            "evaluate": config.evaluate.model_copy(
                update={"perplexity": Config.model_fields["evaluate"].default_factory().perplexity}
            ),
        }
    )
    recorded = {stage: then.read_by(stage) for stage in ("prune", "train", "evaluate")}
    again = recalled(config, json.loads(json.dumps(recorded)))
    assert (again.prune.remove, again.prune.ratio, again.train.tokens) == (None, 0.5, 200)
    assert (again.model.dtype, again.model.path) == ("float32", "model")
    assert again.train.zero_stage == config.train.zero_stage, "it may differ, and is in no fingerprint"
    assert again.evaluate.perplexity.texts == {} and list(config.evaluate.perplexity.texts) == ["other"]
    assert recalled(config, {stage: config.read_by(stage) for stage in STAGES}) == config
    with pytest.raises(ConfigError, match=r"train\.tokens"):
        recalled(config, {"train": recorded["train"] | {"train.tokens": -1}})
