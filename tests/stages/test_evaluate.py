"""Stage evaluate: one model at a time where it judges, all of them in turn where their speeds are compared."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import weakref

import pytest
import torch

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.evaluation import memory, resident
from pipeline.files import read_json, write_json
from pipeline.launch import Place
from pipeline.life import Teller, telling
from pipeline.model.hollow import without_weights
from pipeline.model.load import load_model
from pipeline.run import Run
from pipeline.stages import data, evaluate, judging
from pipeline.stages.stage import Ahead
from pipeline.world import World
from tests.records import stage_record
from tests.stages.family import Family, left

#: A process as one of many: a thread is enough for a tiny model.
ONE_THREAD = Place(local_world=64)
NAMES = ["dense", "pruned", "regrown"]


@pytest.fixture
def config(tiny_config):
    return load_config(tiny_config, ["evaluate.generation.repeats=3"])


@pytest.fixture
def run(config, tmp_path, tiny_model) -> Run:
    """A run whose stages before this one are done: the same weights stand for all three models."""
    run = Run(tmp_path / "run")
    data.work(config, run, World.join(ONE_THREAD), lambda line: None)
    shutil.copytree(tiny_model, run.stage("prune") / "model")
    shutil.copytree(tiny_model, run.stage("train") / "exports" / "last")
    write_json(run.stage("train") / "stage.json", stage_record(result={"export": "train/exports/last"}))
    return run


@pytest.fixture
def loads(monkeypatch) -> list[tuple[str, int]]:
    """Of each model that the stage loads its folder's name, and how many of those before are still in memory."""
    noted, models = [], []

    def load(folder, **settings):
        alive = sum(model() is not None for model in models)
        model = load_model(folder, **settings)
        noted.append((folder.parent.name if folder.name == "model" else folder.name, alive))
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(resident, "load_model", load)
    return noted


def test_models_are_judged_one_at_a_time_and_timed_side_by_side(config, run, loads):
    said = []
    evaluate.work(config, run, World.join(ONE_THREAD), said.append)
    assert [alive for _, alive in loads[:3]] == [0, 0, 0], f"a model was held while the next was loaded: {loads}"
    assert [alive for _, alive in loads[3:]] == [0, 1, 2], f"not all were loaded to be timed side by side: {loads}"
    models = read_json(run.stage("evaluate") / "results.json")["models"]
    assert list(models) == NAMES
    for name, entry in models.items():
        speed = entry["generation"]
        assert (speed["loaded"], speed["rounds"], speed["repeats"]) == ("together", 3, 3), name
        assert speed["latency_range"][0] <= speed["latency_seconds"] <= speed["latency_range"][1]
        assert [sample["prompt"] for sample in speed["samples"]] == ["The city"]
    values = {entry["perplexity"]["held_out"]["value"] for entry in models.values()}
    texts = {entry["generation"]["samples"][0]["text"] for entry in models.values()}
    assert len(values) == len(texts) == 1, f"the same weights gave perplexities {values} and texts {texts}"
    assert "latency: the models are loaded together and take turns" in said


def test_every_text_has_its_figure_with_what_it_was_and_how_it_was_measured(run, tiny_config, tmp_path, texts):
    (tmp_path / "own.txt").write_text("\n\n".join(texts[:6]))
    own = f"evaluate.perplexity.own={{text: {tmp_path}/own.txt, length: 32, stride: 8, bos: none, rows: 6}}"
    hub = "evaluate.perplexity.hub={dataset: nobody/nothing-of-the-kind, split: test}"
    config, said = load_config(tiny_config, [own, hub]), []
    with pytest.MonkeyPatch.context() as patch:
        for module in ("datasets.config", "huggingface_hub.constants"):
            patch.setattr(f"{module}.HF_HUB_OFFLINE", True)
        evaluate.work(config, run, World.join(ONE_THREAD), said.append)
    results = read_json(run.stage("evaluate") / "results.json")
    for name, entry in results["models"].items():
        assert list(entry["perplexity"]) == ["held_out", "own"], name
        found = entry["perplexity"]["own"]
        assert (found["tokens"], found["rows"], found["length"], found["stride"]) == (31 + 5 * 8, 6, 32, 8)
        assert (found["bos"], found["micro_batch"]) == ("none", 8)
        assert found["value"] == pytest.approx(math.exp(found["loss"]))
        text = found["text"]
        assert (text["path"], text["form"], text["join"]) == (f"{tmp_path}/own.txt", "raw", "\n\n")
        assert text["sha256"] == hashlib.sha256((tmp_path / "own.txt").read_bytes()).hexdigest()
        assert entry["perplexity"]["held_out"]["stride"] == entry["perplexity"]["held_out"]["length"] == 64
    assert list(results["left_out"]["perplexity"]) == ["hub"] and "hub" in next(s for s in said if "left out" in s)


def test_models_that_do_not_fit_together_are_loaded_again_for_each_round(config, run, loads, monkeypatch):
    monkeypatch.setattr(memory, "SHARE", 0.0)
    said = []
    evaluate.work(config, run, World.join(ONE_THREAD), said.append)
    assert len(loads) == 3 + 9 and {alive for _, alive in loads} == {0}, f"two models stood in memory: {loads}"
    for name, entry in read_json(run.stage("evaluate") / "results.json")["models"].items():
        assert (entry["generation"]["loaded"], entry["generation"]["rounds"]) == ("in turn", 3), name
    assert "latency: the models are loaded one by one, 3 times: they do not fit together" in said


def test_killed_or_not_and_on_any_number_of_processes_the_figures_are_the_same(
    copy_until, lengthen, regrow, reference, tmp_path, texts
):
    """With as many threads in each process, and spread or not; the models are trained ones, so that they differ."""
    (tmp_path / "own.txt").write_text("\n\n".join(texts[:6]))
    config = lengthen(tmp_path)
    own = f"evaluate.perplexity.own={{text: {tmp_path}/own.txt, length: 32, stride: 8, bos: none, rows: 20}}"
    cores = sorted(os.sched_getaffinity(0))

    def start(name, processes):
        os.sched_setaffinity(0, cores[:processes])
        try:
            few = ["model.host_memory=400000"] if name == "killed" else []
            return regrow("evaluate", config, own, f"run.name={name}", f"evaluate.processes={processes}", *few)
        finally:
            os.sched_setaffinity(0, cores)

    found = {}
    for name, processes in (("killed", 2), ("one", 1)):
        run = copy_until("train", tmp_path, name)
        command = start(name, processes)
        if name == "killed":
            command.read_until("[evaluate] pruned: 8 rows of held_out, 20 rows of own")
            family = Family(command)
            command.kill()
            assert not left(family, run)
            command = start(name, processes)
        assert command.wait() == 0, command.output
        assert ("pruned is dispatched: " in command.output) == (name == "killed"), command.output
        found[name] = [entry["perplexity"] for entry in read_json(run / "evaluate" / "results.json")["models"].values()]
    assert found["killed"] == found["one"]
    known = read_json(reference / "evaluate" / "results.json")["models"].values()
    assert [entry["held_out"] for entry in found["one"]] == [entry["perplexity"]["held_out"] for entry in known]
    assert len({entry["own"]["value"] for entry in found["one"]}) == 3


def test_what_a_kill_left_finished_is_not_computed_again_and_results_have_the_same_bytes(
    config, run, tiny_config, monkeypatch
):
    """Killed before speeds are compared, which may be measured anew."""
    config = load_config(tiny_config, ["evaluate.tasks.names=[sums]", "evaluate.tasks.limit=4"])
    world, results = World.join(ONE_THREAD), run.stage("evaluate") / "results.json"
    speeds = {"latency_seconds": 1.0, "tokens_per_second": 1.0}
    monkeypatch.setattr(evaluate, "_speeds", lambda *args: {name: (dict(speeds), []) for name in NAMES})
    with telling(lambda line: None) as say:
        evaluate.work(config, run, world, say)
        whole = results.read_bytes()
        results.unlink()
        with monkeypatch.context() as patch:
            for name, module in (("perplexity", judging), ("generate_samples", evaluate)):
                patch.setattr(module, name, lambda *args, **how: pytest.fail("computed again"))
            evaluate.work(config, run, world, say)
    assert results.read_bytes() == whole
    other = run.stage("train") / "exports" / "last" / "generation_config.json"
    other.write_text(other.read_text() + " ")
    with telling(lambda line: None) as say, monkeypatch.context() as patch:
        patch.setattr(judging, "perplexity", lambda *args, **how: pytest.fail("another model was computed"))
        with pytest.raises(pytest.fail.Exception, match="another model"):
            evaluate.work(config, run, world, say)


@pytest.mark.slow
def test_the_cost_of_running_is_measured_where_it_is_asked_for(tiny_config, run, tiny_model):
    asked = ["batches=[1, 3]", "new_tokens=[2]", "prompt_tokens=5", "repeats=2"]
    config, said = load_config(tiny_config, [f"evaluate.cost.{one}" for one in asked]), []
    evaluate.work(config, run, World.join(ONE_THREAD), said.append)
    for name, entry in read_json(run.stage("evaluate") / "results.json")["models"].items():
        assert entry["weight_file_bytes"] == (tiny_model / "model.safetensors").stat().st_size, name
        assert [(record["batch"], record["outcome"]) for record in entry["cost"]] == [(1, "measured"), (3, "measured")]
        for record in entry["cost"]:
            assert (record["prompt_tokens"], record["new_tokens"], record["repeats"]) == (5, 2, 2)
            assert record["peak_memory_of"] == "process" and record["peak_memory_bytes"] > 0
        for record in (*entry["cost"], entry["generation"]):
            assert [record[key] for key in ("device", "threads", "dtype")] == ["cpu", 1, "bfloat16"], record
    assert any(line.startswith("cost: batch 3, 2 new tokens: dense ") for line in said), said
    costs = [entry["cost"] for entry in read_json(run.stage("evaluate") / "results.json")["models"].values()]
    (run.stage("evaluate") / "results.json").unlink()
    evaluate.work(config, run, World.join(ONE_THREAD), said.append)
    again = read_json(run.stage("evaluate") / "results.json")["models"].values()
    assert [entry["cost"] for entry in again] == costs, "what was measured before a kill was measured again"
    assert said.count("cost: batch 3, 2 new tokens: measured before this start") == 1


def test_no_cost_is_measured_unless_it_is_asked_for(config, run):
    evaluate.work(config, run, World.join(ONE_THREAD), lambda line: None)
    assert [entry["cost"] for entry in read_json(run.stage("evaluate") / "results.json")["models"].values()] == [[]] * 3


def test_a_cost_beyond_the_positions_is_refused_beforehand(tiny_config, tiny_model):
    model = without_weights(tiny_model, torch.bfloat16, None, False)
    ahead = {"place": ONE_THREAD, "due": frozenset(["evaluate"]), "encoder": None, "model": model}
    evaluate.check(Ahead(load_config(tiny_config, ["evaluate.cost.new_tokens=[512]"]), **ahead))
    config = load_config(tiny_config, ["evaluate.cost={batches: [1], new_tokens: [512]}"])
    with pytest.raises(RegrowError, match="524, but the model has only 256 positions"):
        evaluate.check(Ahead(config, **ahead))


def test_data_of_tasks_are_inputs_by_their_content(config, run, tmp_path):
    """Another file under the same name would leave the old figures standing."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "piqa.jsonl").write_text('{"goal": "a"}\n')
    asked = config.model_copy(deep=True)
    asked.evaluate.tasks.__dict__.update(names=("piqa",), data=folder)
    before = evaluate.inputs(asked, run)
    assert "evaluate.tasks.data/piqa.jsonl" in before
    (folder / "piqa.jsonl").write_text('{"goal": "another"}\n')
    (folder / "piqa.train.jsonl").write_text('{"goal": "b"}\n')
    after = evaluate.inputs(asked, Run(tmp_path / "anew"))
    assert after["evaluate.tasks.data/piqa.jsonl"] != before["evaluate.tasks.data/piqa.jsonl"]
    assert "evaluate.tasks.data/piqa.train.jsonl" in after


def test_models_that_are_spread_are_judged_to_the_same_figures(tiny_config, run, loads, tmp_path):
    tasks = "evaluate.tasks={names: [sums], limit: 4, shots: 0, batch: 4}"
    found = {}
    for limit in (None, 500_000):
        config, said = load_config(tiny_config, [tasks, *([f"model.host_memory={limit}"] if limit else [])]), []
        shutil.rmtree(run.stage("evaluate"), ignore_errors=True)
        loads.clear()
        evaluate.work(config, run, World.join(ONE_THREAD), Teller(said.append, lambda what: None))
        found[limit] = read_json(run.stage("evaluate") / "results.json")["models"]
    whole, spread = found.values()
    for name in NAMES:
        lies = spread[name]["dispatched"]
        assert lies["disk"] > 0 and 0 < lies["cpu"] <= 500_000, lies
        assert any(line.startswith(f"{name} is dispatched: ") for line in said), said
        for key in ("parameters", "blocks", "perplexity", "tasks", "weight_file_bytes"):
            assert spread[name][key] == whole[name][key], key
        assert spread[name]["generation"]["samples"] == whole[name]["generation"]["samples"]
        assert spread[name]["generation"]["loaded"] == "in turn" and "dispatched" not in whole[name]
    assert {alive for _, alive in loads} == {0}, f"two models that fill the memory stood there: {loads}"
    assert not list((run.stage("evaluate") / "progress" / "offloaded").iterdir())
