"""A run's teacher: found, checked before any work, counted, and learnt from through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.launch import Place
from pipeline.model.load import load_model, resolve_model
from pipeline.run import Run
from pipeline.stages.preflight import preflight
from pipeline.stages.teaching import (
    check_teacher,
    find_teacher,
    is_sharded,
    open_teaching,
    teacher_bytes,
    teacher_flops,
    teacher_hashes,
)
from pipeline.world import ALONE
from tests.tiny import write_tiny_model

SHORT = (
    "train.tokens=2048",
    "train.objective=both",
    "train.distill.hidden=0.5",
    "train.processes=1",
    "train.checkpoint_every=2",
    "data.attention=within",
)
STAGES = ["data", "score", "prune", "train"]


def test_a_run_learns_from_the_dense_model(copy_until, lengthen, tmp_path, regrow):
    """States are met too, and documents alone; killed behind a checkpoint it ends in the bytes of one that was not."""
    path, ends = lengthen(tmp_path), []
    for name, until in (("whole", None), ("killed", "step 3 of 4")):
        run = copy_until("prune", tmp_path, name)
        more = (f"run.name={name}", *SHORT)
        command = regrow("train", path, *more)
        if until is not None:
            command.read_until(until)
            command.kill()
            command = regrow("train", path, *more)
        assert command.wait() == 0, command.output
        lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
        ends.append(([(line["loss"], line["divergence"], line["disagreement"]) for line in lines], run))
        record = read_json(run / "train" / "stage.json")
        assert "teacher/model.safetensors" in record["fingerprint"]["inputs"]
        assert 0 < record["result"]["teacher_flops_per_token"] < record["result"]["flops_per_token"]
    assert ends[0][0] == ends[1][0] and len(ends[0][0]) == 4
    assert all(divergence > 0 and disagreement > 0 for _, divergence, disagreement in ends[0][0])
    exports = [(run / "train/exports/step-00000004/model.safetensors").read_bytes() for _, run in ends]
    assert exports[0] == exports[1]
    assert "teacher: " in (ends[0][1] / "log.txt").read_text()


def test_what_a_teacher_costs(tiny_config, reference):
    config = load_config(tiny_config, ["train.objective=distill"])
    folder = find_teacher(config)
    assert folder == resolve_model(config.model.path)
    whole = sum(parameter.nbytes for parameter in load_model(folder).parameters())
    assert teacher_bytes(config, folder, 4) == whole
    assert teacher_bytes(config, folder, 4, sharded=True) == -(-whole // 4)
    assert teacher_flops(config, folder) > 0 == teacher_flops(config, None)
    assert (
        find_teacher(load_config(tiny_config)) is None
        and teacher_hashes(load_config(tiny_config), Run(reference)) == {}
    )


def test_when_its_weights_are_split(tiny_config):
    def split(beside: int, *overrides: str) -> bool:
        config = load_config(tiny_config, ["train.objective=distill", *(f"train.{one}" for one in overrides)])
        return is_sharded(config, find_teacher(config), ALONE, lambda: beside)

    assert not split(0, "zero_stage=3") and split(1 << 50, "zero_stage=3"), "it is not split where it does not fit"
    assert not split(1 << 50, "zero_stage=1") and not split(1 << 50, "zero_stage=3", "distill.sharded=false")
    assert split(0, "distill.sharded=true") and split(0, "distill.offloaded=true")


def test_another_run_teaches(tiny_config, reference):
    config = load_config(tiny_config, ["train.objective=both", f"train.distill.teacher={reference}"])
    teaching = open_teaching(config, Run(reference), ALONE, lambda: 0, lambda line: None)
    export = load_model(reference / "train" / "exports" / "step-00000024").state_dict()
    assert all(value.equal(export[name]) for name, value in teaching.teacher.model.state_dict().items())
    assert (teaching.share, teaching.kept) == (0.5, tuple(read_json(reference / "prune" / "prune.json")["kept"]))


def test_a_stage_by_itself_refuses_other_tokens_too(copy_until, lengthen, texts, tmp_path, regrow):
    """Before the stage nobody has read the dense model's tokenizer."""
    path, other = lengthen(tmp_path), tmp_path / "other"
    run = copy_until("prune", tmp_path)
    write_tiny_model(other, texts)
    swap(other, 700, 701)
    command = regrow("train", path, "train.processes=1", "train.objective=both", f"train.distill.teacher={other}")
    assert command.wait() != 0 and "2 of the 1,000 ids" in command.output, command.output
    assert not (run / "train" / "metrics.jsonl").exists()


def swap(folder: Path, first: int, second: int) -> None:
    """Have two ids of a tokenizer change their tokens."""
    tokenizer = read_json(folder / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    one, two = [token for token, number in vocabulary.items() if number in (first, second)]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    write_json(folder / "tokenizer.json", tokenizer)


def test_what_is_refused_before_any_stage(tiny_config, texts, tmp_path):
    def refusal(*overrides: str) -> str:
        with pytest.raises(RegrowError) as caught:
            preflight(STAGES, load_config(tiny_config, ["train.objective=both", *overrides]), Place())
        return str(caught.value)

    other = tmp_path / "other"
    write_tiny_model(other, texts)
    named = f"train.distill.teacher={other}"
    preflight(STAGES, load_config(tiny_config, ["train.objective=both", named]), Place())
    assert "hidden 0.1: only the dense model" in refusal(named, "train.distill.hidden=0.1")
    init = (f"train.init={other}", "train.distill.hidden=0.1")
    assert "hidden 0.1: which blocks of the dense model those of train.init" in refusal(*init)
    assert "train.distill.teacher no/such: neither dense, nor" in refusal("train.distill.teacher=no/such")
    swap(other, 700, 701)
    assert "2 of the 1,000 ids" in refusal(named)
    shutil.rmtree(other)
    config = load_config(tiny_config, ["train.objective=both", named])
    assert check_teacher(config, None, elsewhere=True) == [f"train.distill.teacher: {other} is not on this machine"]
