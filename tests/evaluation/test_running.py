"""The cost of stored models: memory and speed come together in one record, and nothing is done where none is asked."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.evaluation import running
from pipeline.evaluation.protocol import CostProtocol
from pipeline.evaluation.resident import Stored
from pipeline.evaluation.running import cost_of_running
from pipeline.model.dispatch import DISK, Dispatch, lying

CPU = torch.device("cpu")
TEXT = torch.arange(40)


def stored(folder, fresh_model):
    fresh_model().save_pretrained(folder)
    return {"one": Stored(folder, "float32", "auto", False)}


def test_memory_is_found_before_a_model_is_loaded_here_and_stands_in_the_records(tmp_path, fresh_model, monkeypatch):
    done = []

    def peaks(one, sizes, text, prompt_tokens):
        done.append("memory")
        return {size: 10_000 * size.batch for size in sizes}

    def load(one, device):
        done.append("load")
        return fresh_model()

    monkeypatch.setattr(running, "resident_peaks", peaks)
    monkeypatch.setattr(Stored, "load", load)
    models = {name: Stored(tmp_path, "float32", "auto", False) for name in ("one", "other")}
    weights = dict.fromkeys(models, 100)
    found = cost_of_running(models, weights, CostProtocol(4, (3,), (1, 2), 0, 2), TEXT, device=CPU, say=done.append)
    assert [what for what in done if what in ("memory", "load")] == ["memory"] * 2 + ["load"] * 2
    assert "in a process of its own" in done[0]
    for records in found.values():
        assert [(r["batch"], r["outcome"], r["loaded"]) for r in records] == [
            (1, "measured", "together"),
            (2, "measured", "together"),
        ]
        assert [(r["peak_memory_bytes"], r["peak_memory_of"]) for r in records] == [
            (10_000, "process"),
            (20_000, "process"),
        ]


def test_what_runs_take_counts_for_whether_the_models_fit_together(tmp_path, fresh_model, monkeypatch):
    monkeypatch.setattr(running, "resident_peaks", lambda one, sizes, *_: dict.fromkeys(sizes, 1 << 60))
    monkeypatch.setattr(Stored, "load", lambda one, device: fresh_model())
    models = {"one": Stored(tmp_path, "float32", "auto", False)}
    found = cost_of_running(models, {"one": 1}, CostProtocol(4, (2,), (1,), 0, 1), TEXT, device=CPU, say=print)
    assert found["one"][0]["loaded"] == "in turn"


def test_a_dispatched_model_is_measured_as_it_is_spread_and_stands_alone(tmp_path, fresh_model):
    """Its memory too, by a process that spreads it in the same way."""
    one = stored(tmp_path, fresh_model)["one"]
    models = {"one": replace(one, dispatch=Dispatch({}, 120_000, tmp_path / "offloaded"))}
    assert lying(models["one"].load(CPU))[DISK] > 0, "shows nothing"
    (record,) = cost_of_running(models, {"one": 0}, CostProtocol(4, (2,), (1,), 0, 1), TEXT, device=CPU, say=print)[
        "one"
    ]
    assert (record["outcome"], record["loaded"], record["peak_memory_of"]) == ("measured", "in turn", "process")


def test_a_machine_that_does_not_tell_memory_is_said_to(tmp_path, fresh_model, monkeypatch):
    monkeypatch.setattr(running, "tells_resident", lambda: False)
    said = []
    models = stored(tmp_path, fresh_model)
    found = cost_of_running(models, {"one": 0}, CostProtocol(4, (2,), (1,), 0, 1), TEXT, device=CPU, say=said.append)
    assert found["one"][0]["outcome"] == "measured" and found["one"][0]["peak_memory_bytes"] is None
    assert "memory is not measured" in said[0]


def test_without_batches_nothing_is_loaded(tmp_path):
    models = {"one": Stored(tmp_path / "not there", "float32", "auto", False)}
    assert cost_of_running(models, {}, CostProtocol(4, (2,), (), 0, 1), TEXT, device=CPU, say=print) == {"one": []}
