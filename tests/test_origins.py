"""Where training begins: each way of train.init, through the stages behind it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.launch import Place
from pipeline.model.load import load_model
from pipeline.origins import (
    check_dense,
    check_origin,
    dense_folder,
    dense_hashes,
    find_origin,
    model_folder,
    origin_hashes,
)
from pipeline.run import Run
from pipeline.stages.preflight import preflight
from tests.tiny import write_tiny_model

SHORT = ("train.tokens=1024", "train.processes=1", "evaluate.processes=1", "train.warmup=0.5")


@pytest.fixture
def opened(lengthen, reference, tmp_path):
    """``opened(*overrides)``: a config with the reference run's first stages done, and its run."""

    def make(*overrides: str) -> tuple[Path, Run]:
        path = lengthen(tmp_path)
        run = tmp_path / "runs" / "tiny"
        if not run.exists():
            for stage in ("data", "score", "prune"):
                shutil.copytree(reference / stage, run / stage)
            shutil.copy(reference / "hashes.json", run)
        return path, Run(run)

    return make


def held_out(run: Run) -> dict[int, float]:
    lines = (run.stage("train") / "held_out.jsonl").read_text().splitlines()
    return {line["step"]: line["held_out_loss"] for line in map(json.loads, lines)}


@pytest.mark.slow
def test_the_controls_go_through_all_stages(opened, reference, regrow):
    """Scratch begins where nothing is known, dense and another run's export where those models stand; each is trained
    on the same rows, evaluated and reported."""
    first, known = {}, held_out(Run(reference))
    for name, init in {"random": "random", "dense": "dense", "other": str(reference)}.items():
        path, run = opened()
        shutil.copytree(run.folder, run.folder.with_name(name))
        command = regrow("run", path, *SHORT, f"run.name={name}", f"train.init={init}")
        assert command.wait() == 0, command.output
        done = Run(run.folder.with_name(name))
        first[name] = held_out(done)[0]
        results = read_json(done.stage("evaluate") / "results.json")["models"]
        assert results["regrown"]["blocks"] == (8 if init == "dense" else 6), f"{init}: {results['regrown']}"
        assert (done.stage("report") / "index.html").exists()
    vocabulary = torch.log(torch.tensor(1000.0)).item()
    assert abs(first["random"] - vocabulary) < 0.5, f"scratch begins at {first['random']}, not at chance {vocabulary}"
    assert first["other"] == known[24], "another run's export is not where its training ended"
    assert first["dense"] not in known.values()


def test_scratch_has_the_pruned_model_s_shape_and_is_exported_with_what_text_did_not_reach(opened, regrow):
    path, run = opened()
    command = regrow("train", path, *SHORT, "train.init=random", "train.learning_rate=1e-3")
    assert command.wait() == 0, command.output
    export = load_model(run.stage("train") / "exports" / "step-00000002").state_dict()
    pruned = load_model(run.stage("prune") / "model").state_dict()
    assert {name: value.shape for name, value in export.items()} == {name: v.shape for name, v in pruned.items()}
    begun = find_origin(load_config(path, ["train.init=random"]), run).load().state_dict()
    moved = max((export[name] - begun[name]).abs().max().item() for name in begun)
    # Two steps of AdamW move a weight by twice the rate at most, but for bf16's rounding.
    assert 0 < moved < 4e-3, f"the export is not what was drawn and trained: {moved}"


def test_what_the_fingerprint_sees(opened, reference):
    path, run = opened()
    assert origin_hashes(load_config(path), run) == {}
    hashes = origin_hashes(load_config(path, [f"train.init={reference}"]), run)
    assert "init/model.safetensors" in hashes and "init/config.json" in hashes
    assert len(hashes["init/model.safetensors"]) == 64


def test_folders_that_are_no_model(opened, tmp_path):
    path, run = opened()
    (tmp_path / "begun" / "train").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for named, said in (("begun", "training has not ended"), ("empty", "neither pruned, random, dense"), ("no", "nei")):
        config = load_config(path, [f"train.init={tmp_path / named}"])
        with pytest.raises(RegrowError, match=f"train.init .*{said}"):
            find_origin(config, run)
    config = load_config(path, ["train.init=no/such"])
    assert check_origin(config, None, elsewhere=True) == ["train.init: no/such is not on this machine"]
    with pytest.raises(RegrowError, match=r"train\.init no/such: neither"):
        model_folder("no/such", "train.init")


def test_other_tokens_are_refused_before_any_stage(opened, texts, tmp_path):
    """Of as many, two have changed places: sizes do not tell."""
    path, _ = opened()
    write_tiny_model(tmp_path / "other", texts)
    config = load_config(path, [f"train.init={tmp_path / 'other'}", "run.name=new"])
    stages = ["data", "score", "prune", "train"]
    preflight(stages, config, Place())
    file = tmp_path / "other" / "tokenizer.json"
    tokenizer = read_json(file)
    vocabulary = tokenizer["model"]["vocab"]
    one, other = [token for token, number in vocabulary.items() if number in (500, 501)]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    write_json(file, tokenizer)
    with pytest.raises(RegrowError, match=r"train.init .*: 2 of the 1,000 ids .* mean other tokens there \(500 is"):
        preflight(stages, config, Place())
    assert not (tmp_path / "runs" / "new").exists()


def test_the_first_dense_model_is_the_one_that_is_pruned_unless_another_is_named(opened, texts, tiny_model, tmp_path):
    path, run = opened()
    config = load_config(path)
    assert dense_folder(config) == tiny_model
    assert (dense_hashes(config, run), check_dense(config, None)) == ({}, [])
    write_tiny_model(tmp_path / "first", texts)
    config = load_config(path, [f"model.dense={tmp_path / 'first'}"])
    assert dense_folder(config) == tmp_path / "first"
    assert "dense/model.safetensors" in dense_hashes(config, run)
    assert config.read_by("evaluate") != load_config(path).read_by("evaluate")
    preflight(["evaluate"], config, Place())
    shutil.copytree(tmp_path / "first", tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace('"<s>"', '"<t>"'))
    with pytest.raises(RegrowError, match=r"model\.dense .*other: .* ids .* mean other tokens there"):
        preflight(["evaluate"], load_config(path, [f"model.dense={tmp_path / 'other'}"]), Place())
    with pytest.raises(RegrowError, match=r"model\.dense 'no/such/place'"):
        dense_folder(load_config(path, ["model.dense=no/such/place"]))
    config = load_config(path, ["model.dense=no/such"])
    assert check_dense(config, None, elsewhere=True) == ["model.dense: no/such is not on this machine"]
