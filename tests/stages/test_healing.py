"""Healing in the stage: the folder that training begins with, killed and resumed, by one process and by two."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import perplexity
from pipeline.files import read_json
from pipeline.inputs import Inputs
from pipeline.model.load import load_model
from pipeline.origins import find_origin
from pipeline.run import Run
from pipeline.stages.healing import begin_with, check_heal, read_healing
from pipeline.stopping import STOPPED
from pipeline.world import ALONE
from tests.command import Regrow
from tests.families import build
from tests.stages.family import Family

#: Two borders of small blocks, and two steps of training.
HEALED = """extends: tiny.yaml
prune: {remove: null, blocks: [2, 4]}
score: {sequences: 24}
train: {tokens: 1024, heal: local, healing: {sequences: 64, length: 32, ridge: 0.1}}
"""


@pytest.fixture(scope="module")
def healed(configure, reference, once) -> Path:
    """The config of a run in runs/tiny beside it that was healed and trained by two processes. Not to be changed."""

    def make(folder: Path) -> None:
        configure(folder)
        config = folder / "healed.yaml"
        config.write_text(HEALED)
        run = folder / "runs" / "tiny"
        for stage in ("data", "score"):
            shutil.copytree(reference / stage, run / stage)
        shutil.copy(reference / "hashes.json", run)
        for stage in ("prune", "train"):
            command = Regrow(stage, config)
            assert command.wait() == 0, command.output

    return once("healed", make) / "healed.yaml"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(healed: Path) -> list[str]:
    """The weights in which a healed model is another than the pruned one that it was made of."""
    before, after = (weights(healed / part) for part in ("prune/model", "train/healed"))
    assert before.keys() == after.keys()
    return sorted(name for name, value in after.items() if not value.equal(before[name]))


def another(healed: Path, folder: Path, *overrides: str) -> tuple:
    """Config and run of a second training from the same pruned model."""

    config = load_config(healed, [f"run.folder={folder}", *overrides])
    for stage in ("data", "prune"):
        shutil.copytree(healed.parent / "runs" / "tiny" / stage, folder / "tiny" / stage)
    return config, Run(folder / "tiny")


def test_training_begins_with_the_healed_model_and_the_record_says_what_was_healed(healed):
    run = healed.parent / "runs" / "tiny"
    record = read_json(run / "train" / "stage.json")
    found = record["result"]["healed"]["blocks"]
    assert [(one["block"], one["removed"]) for one in found] == [(1, [2]), (3, [4])]
    names = {
        f"model.layers.{place}.mlp.down_proj.weight" for place, one in zip((1, 2), found, strict=True) if one["kept"]
    }
    assert set(changed(run)) == names and names, found
    assert all(one["tokens"] == 56 * 32 for one in found), "other than seven sequences of eight were fitted on"
    assert {"healing.json", "healed/model.safetensors", "healed/tokenizer.json"} <= record["outputs"].keys()
    for folder in ("healed", "exports/step-00000002"):
        regrow = read_json(run / "train" / folder / "config.json")["regrow"]
        assert regrow["healed_blocks"] == [one["block"] for one in found if one["kept"]]
        assert regrow["kept_blocks"] == [0, 1, 3, 5, 6, 7]
    config = load_config(healed)
    rows = Inputs(config, Run(run)).held_out_rows(64, "document", 4)
    start = json.loads((run / "train" / "held_out.jsonl").read_text().splitlines()[0])
    losses = [
        perplexity(load_model(run / folder), rows, micro_batch=2, device="cpu")["loss"]
        for folder in ("train/healed", "prune/model")
    ]
    assert (start["step"], start["held_out_loss"]) == (0, pytest.approx(losses[0], abs=2e-3))
    assert abs(losses[1] - losses[0]) > 0.01, "healed and pruned model cannot be told apart on these rows"


def test_killed_at_a_border_it_goes_on_to_the_bytes_of_an_uninterrupted_healing(healed, tmp_path):
    whole, killed = another(healed, tmp_path / "whole"), another(healed, tmp_path / "killed")
    origin = begin_with(*whole, find_origin(*whole), ALONE, print)

    def kill(line: str) -> None:
        if "block 1 " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_with(*killed, find_origin(*killed), ALONE, kill)
    stage = killed[1].stage("train")
    assert (stage / "progress" / "healing-0001.json").is_file() and not (stage / "healed").exists()
    again = begin_with(*killed, find_origin(*killed), ALONE, print)
    assert again.folder == stage / "healed" and again.dtype == "bfloat16"
    for name in ("healed/model.safetensors", "healed/config.json", "healing.json"):
        assert (stage / name).read_bytes() == (origin.folder.parent / name).read_bytes(), f"{name} is another"

    # Two processes add in another order, which may turn a rounding to bf16.
    two, one = weights(healed.parent / "runs" / "tiny" / "train" / "healed"), weights(origin.folder)
    assert all(torch.allclose(value, one[name], rtol=2**-7, atol=1e-3) for name, value in two.items())

    said: list[str] = []
    assert begin_with(*killed, find_origin(*killed), ALONE, said.append) == again and said == [], "it was healed twice"


@pytest.mark.slow
def test_asked_to_stop_while_it_heals_it_keeps_what_is_fitted_and_ends_in_the_same_bytes(healed, regrow, tmp_path):
    _, run = another(healed, tmp_path)
    command = regrow("train", healed, f"run.folder={tmp_path}")
    command.read_until("[train] healed block 1 ", 300)
    (rank,) = Family(command).named("regrow-rank-1")
    rank.send_signal(signal.SIGUSR1)
    assert command.wait() == STOPPED, command.output
    stage = run.stage("train")
    assert (stage / "REQUEUE").exists() and not (stage / "healed").exists()
    kept = (stage / "progress" / "healing-0001.json").stat()
    command = regrow("train", healed, f"run.folder={tmp_path}")
    assert command.wait() == 0, command.output
    again = (stage / "progress" / "healing-0001.json").stat()
    assert (again.st_ino, again.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns), "the first border was fitted again"
    whole = healed.parent / "runs" / "tiny" / "train"
    for name in ("healed/model.safetensors", "healing.json", "exports/step-00000002/model.safetensors"):
        assert (stage / name).read_bytes() == (whole / name).read_bytes(), f"{name} is another"


def test_without_healing_training_begins_with_the_pruned_model(healed, tmp_path):
    config, run = another(healed, tmp_path, "train.heal=none")
    assert begin_with(config, run, find_origin(config, run), ALONE, print).folder == run.stage("prune") / "model"
    assert read_healing(config, run) is None
    assert not run.stage("train").exists()


def test_a_model_of_experts_alone_is_refused_before_work(healed):
    config = load_config(healed)
    with pytest.raises(RegrowError, match=r"train\.heal local: every block of MixtralForCausalLM is a mixture of exp"):
        check_heal(config, build("mixtral"))
    check_heal(config, build("qwen3_moe"))
    check_heal(config, None)
    check_heal(load_config(healed, ["train.heal=none"]), build("mixtral"))
