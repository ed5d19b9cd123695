"""Latency: models that take turns, side by side or loaded anew; what is timed, and what is said of it."""

from __future__ import annotations

import gc
import statistics
import time
import weakref

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.evaluation.generation import encode_prompt
from pipeline.evaluation.latency import ROUNDS, Workload, measure_latency

CPU = torch.device("cpu")
PROMPT = "The ferry crosses"
NAMES = ("dense", "pruned", "regrown")


@pytest.fixture
def watched(fresh_model, encoder):
    """``load`` that notes what was loaded, which earlier models were alive then, and every generation by its name."""

    class Watched:
        def __init__(self):
            self.loads: list[str] = []
            self.alive: list[int] = []
            self.generations: list[str] = []
            self.forwards = 0
            self.on_forward = lambda: None
            self._models: list[weakref.ref] = []

        def __call__(self, name: str):
            self.alive.append(sum(model() is not None for model in self._models))
            model = fresh_model()
            self._models.append(weakref.ref(model))
            self.loads.append(name)

            def hook(module, arguments, inputs, output):
                self.forwards += 1
                if inputs["input_ids"].shape[1] > 1:
                    self.generations.append(name)
                self.on_forward()

            model.register_forward_hook(hook, with_kwargs=True)
            return model, encoder

    gc.collect()
    return Watched()


def test_models_that_fit_stay_and_take_turns_run_by_run(watched):
    found = measure_latency(watched, NAMES, Workload(PROMPT, 2, 1, 4), device=CPU, together=True)
    assert watched.loads == list(NAMES) and watched.alive == [0, 1, 2], "not all stayed loaded"
    there, back = list(NAMES), list(reversed(NAMES))
    assert watched.generations == [*there, *there, *back, *there, *back], "warm-ups, then runs in turns there and back"
    for entry in found.values():
        assert (entry["loaded"], entry["rounds"], entry["repeats"]) == ("together", 4, 4)


def test_models_that_do_not_fit_are_loaded_in_turn_one_at_a_time(watched):
    found = measure_latency(watched, NAMES, Workload(PROMPT, 2, 1, 4), device=CPU, together=False)
    turns = [*NAMES, *reversed(NAMES), *NAMES]
    assert watched.loads == turns, "every model is loaded in each of three rounds"
    assert watched.alive == [0] * len(turns), f"models that were still held at each load: {watched.alive}"
    assert watched.generations == [name for name in turns for _ in range(1 + 2)], "a warm-up and two runs"
    for entry in found.values():
        assert (entry["loaded"], entry["rounds"], entry["repeats"]) == ("in turn", ROUNDS, 6)


def test_two_models_of_one_architecture_are_as_fast_on_a_machine_that_slows_down(watched):
    """Every forward takes 4 ms longer than the one before: one model after the other would differ by far."""
    taken = []

    def slower():
        taken.append(0.004 * len(taken))
        time.sleep(taken[-1])

    watched.on_forward = slower
    found = measure_latency(watched, ("pruned", "regrown"), Workload(PROMPT, 2, 1, 6), device=CPU, together=True)
    pruned, regrown = (found[name]["latency_seconds"] for name in ("pruned", "regrown"))
    half = len(taken) // 2
    apart = statistics.median(taken[half:]) / statistics.median(taken[:half])
    assert apart > 2, "shows nothing: one model after the other would have been as good"
    assert max(pruned, regrown) / min(pruned, regrown) < 1.35, f"{pruned} s and {regrown} s for the same work"


def test_times_exactly_the_tokens_asked_for_even_past_an_end_token(watched, encoder, fresh_model):
    model = fresh_model().eval()
    ids = encode_prompt(model, encoder, PROMPT, 9)
    with torch.no_grad():
        first = int(model(input_ids=ids).logits[0, -1].argmax())

    def load(name):
        model, encoder = watched(name)
        model.train()
        model.generation_config.eos_token_id = first
        load.model = model
        return model, encoder

    entry = measure_latency(load, ["one"], Workload(PROMPT, 9, 3, 4), device=CPU, together=True)["one"]
    assert watched.forwards == 9 * (1 + 4), "one warm-up and four timed runs of nine tokens each"
    assert (entry["prompt_tokens"], entry["new_tokens"], entry["batch"]) == (ids.shape[1], 9, 3)
    low, high = entry["latency_range"]
    assert 0 < low <= entry["latency_seconds"] <= high
    assert entry["tokens_per_second"] == pytest.approx(27 / entry["latency_seconds"])
    assert entry["peak_memory_bytes"] is None, "a CPU has no peak to report"
    assert load.model.training and load.model.generation_config.eos_token_id == first, "settings were not restored"


def test_latency_is_a_median_and_one_run_has_no_range(watched):
    pauses = iter([0.0, 0.02, 0.02, 1.0])  # The warm-up's, and one run that was disturbed.
    watched.on_forward = lambda: time.sleep(next(pauses))
    entry = measure_latency(watched, ["one"], Workload(PROMPT, 1, 1, 3), device=CPU, together=True)["one"]
    assert entry["latency_seconds"] < 0.5 < 1.0 <= entry["latency_range"][1], f"not a median: {entry}"
    watched.on_forward = lambda: None
    entry = measure_latency(watched, ["one"], Workload(PROMPT, 1, 1, 1), device=CPU, together=True)["one"]
    assert entry["latency_range"] is None and entry["repeats"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="peak memory is counted on a GPU only: test.sh -m gpu there")
@pytest.mark.parametrize("together", [True, False])
def test_peak_memory_on_a_gpu_holds_the_weights_of_one_model(fresh_model, encoder, together):
    def load(name):
        return fresh_model().to("cuda"), encoder

    weights = fresh_model().get_memory_footprint()
    found = measure_latency(load, NAMES, Workload(PROMPT, 4, 2, 2), device=torch.device("cuda"), together=together)
    for name, entry in found.items():
        assert weights < entry["peak_memory_bytes"] < 2 * weights, f"{name}: {entry['peak_memory_bytes']} of {weights}"


@pytest.mark.parametrize(("change", "message"), [({"batch": 0}, "batch 0"), ({"repeats": 0}, "repeats 0")])
def test_refuses_what_cannot_be_measured(watched, change, message):
    work = Workload(**{"prompt": PROMPT, "new_tokens": 4, "batch": 1, "repeats": 1} | change)
    with pytest.raises(RegrowError, match=message):
        measure_latency(watched, NAMES, work, device=CPU, together=True)
    assert watched.loads == [], "a model was loaded first"
