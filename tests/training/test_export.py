"""Exports: the engine's weights in a plain folder that is whole or not there; what an engine rounded is kept."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import RegrowError
from pipeline.model.load import load_model
from pipeline.training.export import Origin, load_trained, write_export
from pipeline.world import ALONE, World
from tests.families import build


@dataclass
class Trained:
    """What an export asks of an engine: the weights on the first process, and what it left alone."""

    values: dict[str, torch.Tensor] | None
    unreached: tuple[str, ...] = ()
    world: World = field(default_factory=lambda: ALONE)

    def weights(self) -> dict[str, torch.Tensor] | None:
        return self.values


@pytest.fixture
def origin(tiny_model) -> Origin:
    return Origin(tiny_model, "bfloat16")


@pytest.fixture
def moved(origin) -> dict[str, torch.Tensor]:
    """The origin's weights after a step of training."""
    return {name: value + 0.25 for name, value in origin.load().state_dict().items()}


def test_it_holds_the_weights_and_what_else_lies_in_the_origin_s_folder(origin, moved, tmp_path):
    target = write_export(Trained(moved), origin, tmp_path / "exports" / "step-8")
    saved = load_file(target / "model.safetensors")
    assert saved.keys() == moved.keys() and all(saved[name].equal(moved[name]) for name in moved)
    companions = {path.name for path in origin.folder.iterdir()}
    assert companions <= {path.name for path in target.iterdir()}, "the tokenizer or a config did not come along"
    assert load_model(target).dtype == torch.bfloat16
    assert [path.name for path in target.parent.iterdir()] == ["step-8"], "scratch files are left"


def test_what_the_engine_left_alone_keeps_its_bits(origin, moved, tmp_path):
    name = "model.layers.2.mlp.up_proj.weight"
    target = write_export(Trained(moved, (name,)), origin, tmp_path / "export")
    saved, before = load_file(target / "model.safetensors"), load_file(origin.folder / "model.safetensors")
    assert [key for key in saved if saved[key].equal(before[key])] == [name]


def test_buffers_keep_their_bits():
    model = build("deepseek_v3")
    for buffer in model.buffers():
        buffer.copy_(torch.linspace(0.1, 0.9, buffer.numel()).view_as(buffer))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kept = [name for name in model.state_dict() if name in buffers]
    assert kept, "this model saves no buffer: nothing is shown"
    rounded = {name: value.bfloat16().float() for name, value in model.state_dict().items()}
    assert any(not rounded[name].equal(buffers[name]) for name in kept), "bf16 holds these: nothing is shown"
    load_trained(model, rounded, ())
    after = model.state_dict()
    assert all(after[name].equal(buffers[name]) for name in kept), "a buffer was rounded"
    assert all(after[name].equal(rounded[name]) for name in after if name not in kept)


def test_an_export_that_meets_a_full_disk_says_so_and_the_one_before_it_stays(origin, moved, tmp_path):
    """A limit on the size of files is met as a full disk or a quota is: in the middle of writing."""
    target = write_export(Trained(moved), origin, tmp_path / "export")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written|File too large"):
            write_export(Trained({name: value + 1 for name, value in moved.items()}), origin, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before, "the export before it has changed"
    write_export(Trained(moved), origin, target)
    assert [path.name for path in target.parent.iterdir()] == ["export"], "what the failed one left is still there"


def test_a_second_export_takes_the_place_of_the_first_and_of_what_a_kill_left(origin, moved, tmp_path):
    target = write_export(Trained(moved), origin, tmp_path / "export")
    (target / "of-the-first").touch()
    scratch = tmp_path / ".export.new"
    scratch.mkdir()
    (scratch / "half").touch()
    later = {name: value + 1 for name, value in moved.items()}
    write_export(Trained(later), origin, target)
    names = {path.name for path in target.iterdir()}
    assert not {"of-the-first", "half"} & names and not scratch.exists()
    assert load_file(target / "model.safetensors")["lm_head.weight"].equal(later["lm_head.weight"])


def test_an_export_that_cannot_be_written_leaves_the_earlier_one(origin, moved, tmp_path, monkeypatch):
    target = write_export(Trained(moved), origin, tmp_path / "export")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    later = {name: value + 1 for name, value in moved.items()}
    # As much as no disk has: the size alone is asked for, and the values are one number.
    huge = torch.empty((), dtype=torch.bfloat16).expand(2**60)
    with pytest.raises(RegrowError, match="no space for export export"):
        write_export(Trained(later | {"lm_head.weight": huge}), origin, target)
    monkeypatch.setattr("pipeline.training.export.copy_companions", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_export(Trained(later), origin, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_processes_without_the_weights_write_nothing_and_wait(origin, tmp_path):
    waited = []

    class Other(World):
        def barrier(self) -> None:
            waited.append(True)

    target = tmp_path / "export"
    assert write_export(Trained(None, world=Other(1, 2)), origin, target) == target
    assert waited == [True] and not target.exists()
