"""Going on in another layout: what every parameter has there is what it had, bit for bit; and losses stay near."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import RegrowError
from pipeline.training.fragments import Fragment
from pipeline.training.restoring import _read_fragments

#: (processes that took them up, stage): checkpoints of all stages and LoRA on two processes, of ZeRO 1 on four.
TAKEN_UP = [
    pytest.param(4, 3, id="to-4-zero-3", marks=pytest.mark.slow),
    pytest.param(1, 0, id="to-1-zero-0"),
    pytest.param(4, 2, id="to-4-zero-2", marks=pytest.mark.slow),
    pytest.param(1, 1, id="to-1-zero-1", marks=pytest.mark.slow),
    *(pytest.param(2, stage, id=f"to-2-zero-{stage}", marks=pytest.mark.slow) for stage in range(4)),
]


@pytest.mark.parametrize(("processes", "stage"), TAKEN_UP)
def test_in_another_layout_every_value_is_the_one_that_was_written(measured, processes, stage):
    found = measured(processes)[f"taken_up-{stage}-bf16"]
    written = {*(f"all-2-{one}" for one in range(4)), "lora-2-1"} | (
        set() if (processes, stage) == (1, 0) else {"all-4-1"}
    )
    assert found.keys() >= written, found.keys()
    for source, entry in found.items():
        assert entry["names"] == [], f"{source}: parameters that stand on one side only"
        assert entry["differing"] == [], f"{source}: masters, moments or counts are others"
        assert entry["least_update"] == 3, "moments of a parameter that was never updated show nothing"
        assert entry["groups"], f"{source}: rates, decays or betas of groups are others"
        assert entry["rates"] == [1e-3] and entry["decays"] in ([0.0, 0.1], [0.1]), entry
        assert entry["counters"], f"{source}: DeepSpeed's counts of steps are others"
        assert entry["unrounded"] == [], f"{source}: the model computes with other weights than the masters"
        _, size, written = source.split("-")
        for name, was, now in (("processes", size, str(processes)), ("zero_stage", written, str(stage))):
            told = f"{name} was {was}, is {now}" in (entry["changed"] or "")
            assert told == (was != now), f"{source}: {entry['changed']}"
        if int(size) != processes:
            assert len(set(entry["drawn"])) == processes, "processes draw the same random numbers"


@pytest.mark.parametrize(("processes", "stage"), TAKEN_UP)
def test_in_another_layout_losses_stay_near_those_of_the_undisturbed_run(measured, processes, stage):
    found = measured(processes)[f"taken_up-{stage}-bf16"]
    apart = {source: entry["apart"] for source, entry in found.items() if "apart" in entry}
    assert apart, "no pair was trained on"
    assert max(apart.values()) < 1e-3, f"over twenty steps losses move apart: {apart}"


@pytest.mark.parametrize("case", [*(f"written-{stage}-bf16" for stage in range(4)), "written_lora-1-bf16"])
def test_weights_are_the_masters_rounded(measured, case):
    assert measured(2)[case]["unrounded"] == [[], []]


def piece(name: str, offset: int, length: int) -> Fragment:
    values = {kind: torch.full((length,), -1.0) for kind in ("master", "exp_avg", "exp_avg_sq")}
    return Fragment(name, offset, length, values, torch.zeros(()))


@pytest.fixture
def cut(tmp_path):
    """A checkpoint's two files, with ten values of a parameter, seven in the first: master, twice and three times."""
    for rank, (begin, end) in enumerate([(0, 7), (7, 10)]):
        master = torch.arange(begin, end, dtype=torch.float32)
        tensors = {f"{kind}/w": master * times for times, kind in enumerate(("master", "exp_avg", "exp_avg_sq"), 1)}
        about = {"fragments": json.dumps({"w": [begin, end - begin, 5]})}
        save_file(tensors, tmp_path / f"rank-{rank:05d}.safetensors", about)
    return tmp_path


def test_a_fragment_is_read_from_all_files_that_it_lies_in(cut):
    wanted = piece("w", 5, 4)
    _read_fragments(cut, [wanted], rank=2, files=2)
    assert wanted.values["master"].tolist() == [5, 6, 7, 8]
    assert wanted.values["exp_avg_sq"].tolist() == [15, 18, 21, 24]
    assert wanted.updates.item() == 5


def test_a_process_that_finds_all_in_its_own_file_opens_no_other(cut):
    (cut / "rank-00000.safetensors").write_bytes(b"nothing")
    wanted = piece("w", 7, 3)
    _read_fragments(cut, [wanted], rank=1, files=2)
    assert wanted.values["master"].tolist() == [7, 8, 9]


def test_values_that_are_in_no_file_are_refused(cut):
    with pytest.raises(RegrowError, match="2 values of its parameters are in none of its files"):
        _read_fragments(cut, [piece("w", 8, 4)], rank=0, files=2)
    shutil.copy(cut / "rank-00000.safetensors", cut / "rank-00001.safetensors")
    assert load_file(cut / "rank-00001.safetensors")["master/w"].tolist() == list(range(7))
    with pytest.raises(RegrowError, match="in none of its files"):
        _read_fragments(cut, [piece("other", 0, 4)], rank=0, files=2)
