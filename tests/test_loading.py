"""When a model is spread, and over what: by the config, by what memory there is, and alike in all processes."""

from __future__ import annotations

import pytest
import torch

from pipeline import loading
from pipeline.config import load_config
from pipeline.loading import dispatch_note, offloaded, spread, weight_bytes
from pipeline.loading import loading as load_settings
from pipeline.model.describe import describe_folder
from pipeline.world import World


class Others(World):
    """One of two processes of a machine; the other answers as it is told."""

    def __init__(self, other: bool, **settings):
        super().__init__(1, 2, on_this_machine=2, **settings)
        self.other = other

    def gather(self, value):
        return [self.other, value]


@pytest.fixture
def asked(tiny_config, tiny_model, tmp_path):
    """``asked(world, overrides)``: how the tiny model is spread."""
    return lambda world, *overrides: spread(
        load_config(tiny_config, overrides), tiny_model, "bfloat16", world, tmp_path
    )


def test_a_model_is_spread_where_it_does_not_fit_or_must_be(asked, tiny_model, tmp_path):
    bytes_ = weight_bytes(describe_folder(tiny_model), "bfloat16")
    assert bytes_ == 2 * sum(p.numel() for p in describe_folder(tiny_model).parameters())
    assert asked(World()) is None and asked(World(), f"model.host_memory={bytes_}") is None
    few = asked(World(), f"model.host_memory={bytes_ - 1}")
    assert (few.gpus, few.host, few.folder) == ({}, bytes_ - 1, tmp_path / "offloaded" / "0")
    assert asked(World(), "model.dispatch=false", "model.host_memory=0") is None
    assert asked(World(), "model.dispatch=true").host > bytes_


def test_all_processes_spread_or_none_and_each_has_its_share(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "available_memory", lambda: 10**9)
    assert asked(Others(False)) is None
    share = asked(Others(True))
    assert (share.host, share.folder) == (4 * 10**8, tmp_path / "offloaded" / "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (1000 * (gpu + 1), 10**9))
    second = Others(False, device=torch.device("cuda", 1))
    assert asked(second).gpus == {1: 1600, 3: 3200}, "a GPU is shared, or idle"
    assert asked(second, "model.device_memory=2000").gpus == {1: 2000, 3: 2000}
    assert asked(second, "model.device_memory=2e9") is None


def test_what_is_loaded_is_asked_for_in_the_stages_dtype(tiny_config, tmp_path):
    config = load_config(tiny_config, ["model.attention=eager"])
    assert load_settings(config, "float32") == {"dtype": "float32", "attention": "eager", "trust_remote_code": False}
    assert offloaded(tmp_path, World()) == tmp_path / "offloaded" / "0"


def test_a_plan_says_where_a_model_will_be_spread(tiny_config, tiny_model):
    model = describe_folder(tiny_model)
    bytes_ = weight_bytes(model, "bfloat16")
    assert dispatch_note(load_config(tiny_config), model, 2 * bytes_) == []
    (line,) = dispatch_note(load_config(tiny_config), model, bytes_)
    assert line.startswith("model.dispatch auto: the dense model's weights (") and "2 GPUs hold it" in line
    (line,) = dispatch_note(load_config(tiny_config, ["model.dispatch=true"]), model, 2 * bytes_)
    assert "do not fit" not in line and "GPUs hold" not in line
    (line,) = dispatch_note(load_config(tiny_config, ["model.dispatch=false"]), model, bytes_)
    assert line.endswith("cannot run it; set model.dispatch=auto")
