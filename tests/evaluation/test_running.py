"""The cost of stored models: memory and speed come together in one record, and nothing is done where none is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.evaluation import running
from pipeline.evaluation.figures import Figures
from pipeline.evaluation.protocol import CostProtocol, Size
from pipeline.evaluation.resident import Stored
from pipeline.evaluation.running import Kept, cost_of_running
from pipeline.model.dispatch import DISK, Dispatch, lying
from pipeline.world import ALONE

CPU = torch.device("cpu")
TEXT = torch.arange(40)


def stored(folder, fresh_model):
    fresh_model().save_pretrained(folder)
    return {"one": Stored(folder, "float32", "auto", False)}


@pytest.fixture
def kept(tmp_path) -> Kept:
    """Nothing is known at first."""
    return Kept(Figures(tmp_path / "figures", ALONE), {"models": "these"})


def test_memory_is_found_before_a_model_is_loaded_here_and_stands_in_the_records(
    tmp_path, fresh_model, monkeypatch, kept
):
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
    found = cost_of_running(
        models, weights, CostProtocol(4, (3,), (1, 2), 0, 2), TEXT, device=CPU, say=done.append, kept=kept
    )
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


def test_what_runs_take_counts_for_whether_the_models_fit_together(tmp_path, fresh_model, monkeypatch, kept):
    monkeypatch.setattr(running, "resident_peaks", lambda one, sizes, *_: dict.fromkeys(sizes, 1 << 60))
    monkeypatch.setattr(Stored, "load", lambda one, device: fresh_model())
    models = {"one": Stored(tmp_path, "float32", "auto", False)}
    found = cost_of_running(
        models, {"one": 1}, CostProtocol(4, (2,), (1,), 0, 1), TEXT, device=CPU, say=print, kept=kept
    )
    assert found["one"][0]["loaded"] == "in turn"


def test_a_dispatched_model_is_measured_as_it_is_spread_and_stands_alone(tmp_path, fresh_model, kept):
    """Its memory too, by a process that spreads it in the same way."""
    one = stored(tmp_path, fresh_model)["one"]
    models = {"one": replace(one, dispatch=Dispatch({}, 120_000, tmp_path / "offloaded"))}
    assert lying(models["one"].load(CPU))[DISK] > 0, "shows nothing"
    (record,) = cost_of_running(
        models, {"one": 0}, CostProtocol(4, (2,), (1,), 0, 1), TEXT, device=CPU, say=print, kept=kept
    )["one"]
    assert (record["outcome"], record["loaded"], record["peak_memory_of"]) == ("measured", "in turn", "process")


def test_a_machine_that_does_not_tell_memory_is_said_to(tmp_path, fresh_model, monkeypatch, kept):
    monkeypatch.setattr(running, "tells_resident", lambda: False)
    said = []
    models = stored(tmp_path, fresh_model)
    found = cost_of_running(
        models, {"one": 0}, CostProtocol(4, (2,), (1,), 0, 1), TEXT, device=CPU, say=said.append, kept=kept
    )
    assert found["one"][0]["outcome"] == "measured" and found["one"][0]["peak_memory_bytes"] is None
    assert "memory is not measured" in said[0]


def test_without_batches_nothing_is_loaded(tmp_path, kept):
    models = {"one": Stored(tmp_path / "not there", "float32", "auto", False)}
    assert cost_of_running(models, {}, CostProtocol(4, (2,), (), 0, 1), TEXT, device=CPU, say=print, kept=kept) == {
        "one": []
    }


def test_sizes_that_were_finished_before_a_kill_are_taken_and_only_the_others_measured(
    tmp_path, fresh_model, kept, monkeypatch
):
    """Killed while batch 2 is at work: batch 1 was finished by then, with all models."""
    models = {name: one for one in stored(tmp_path / "model", fresh_model).values() for name in ("one", "other")}
    weights, said, asked = dict.fromkeys(models, 0), [], []

    def peaks(one, sizes, text, prompt_tokens):
        asked.append([size.batch for size in sizes])
        return dict.fromkeys(sizes, 1000)

    monkeypatch.setattr(running, "resident_peaks", peaks)

    def measure(protocol, kept=kept, say=said.append):
        return cost_of_running(models, weights, protocol, TEXT, device=CPU, say=say, kept=kept)

    def dies(line):
        if line.startswith("cost: batch 2,"):
            raise KeyboardInterrupt

    protocol = CostProtocol(4, (2,), (1, 2), 0, 2)
    with pytest.raises(KeyboardInterrupt):
        measure(protocol, say=dies)
    (records,) = kept.find(protocol).values()
    found = measure(protocol)
    assert said.count("cost: batch 1, 2 new tokens: measured before this start") == 1
    assert not any(line.startswith("cost: batch 1, 2 new tokens: one") for line in said), "batch 1 was timed again"
    for name, (first, second) in found.items():
        assert first == records[name] and (second["batch"], second["outcome"]) == (2, "measured")
    assert measure(protocol) == found, "what was finished is not measured again"
    assert asked == [[1, 2], [1, 2], [2], [2]], "memory that was known was measured again"
    assert set(kept.find(CostProtocol(4, (2,), (1, 2, 3), 0, 2))) == {Size(2, 1), Size(2, 2)}
    for other in (
        CostProtocol(4, (2,), (1,), 0, 3),
        CostProtocol(4, (2,), (1,), 1, 2),
        CostProtocol(5, (2,), (1,), 0, 2),
    ):
        assert kept.find(other) == {}, "these are times of other work"
    assert Kept(Figures(tmp_path / "figures", ALONE), {"models": "others"}).find(protocol) == {}
