"""The cost of running: models take turns, prefill and decoding are told apart, and what does not fit is a finding."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable

import pytest
import torch

from pipeline.evaluation.cost import Measuring, measure_cost
from pipeline.evaluation.latency import ROUNDS
from pipeline.evaluation.protocol import CostProtocol, Size

CPU = torch.device("cpu")
NAMES = ["dense", "pruned", "regrown"]


class Watched:
    """Loads models, and notes each loading, which earlier models were alive then, and what each forward reads."""

    def __init__(self, fresh_model: Callable) -> None:
        self.fresh_model = fresh_model
        self.loads: list[str] = []
        self.alive: list[int] = []
        self.prompts: list[tuple[str, int]] = []
        self.on_forward: Callable[[str, int, int], None] = lambda name, batch, alive: None
        self._models: list[weakref.ref] = []

    def living(self) -> int:
        return sum(model() is not None for model in self._models)

    def __call__(self, name: str) -> torch.nn.Module:
        self.alive.append(self.living())
        model = self.fresh_model()
        self._models.append(weakref.ref(model))
        self.loads.append(name)

        def before(module, arguments, inputs):
            batch, width = inputs["input_ids"].shape
            if width > 1:
                self.prompts.append((name, batch))
            self.on_forward(name, batch, self.living())

        model.register_forward_pre_hook(before, with_kwargs=True)
        return model


@pytest.fixture
def watched(fresh_model):
    gc.collect()
    return Watched(fresh_model)


def measure(watched, protocol, *, together=True, peaks=None, names=NAMES):
    said = []
    measuring = Measuring(names, watched, protocol, torch.arange(60), CPU, said.append)
    return measure_cost(measuring, together=together, peaks=peaks or {}), said


def limit(most: dict[str, int]) -> Callable[[str, int, int], None]:
    """Raises as a GPU does that has no room for more sequences than a model may have."""

    def forward(name: str, batch: int, alive: int) -> None:
        if batch > most.get(name, batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return forward


def outcomes(found):
    return {name: [record["outcome"] for record in records] for name, records in found.items()}


def test_models_that_fit_stay_and_take_turns_run_by_run_at_every_size(watched):
    found, said = measure(watched, CostProtocol(4, (2,), (1, 3), warm_up=2, repeats=3))
    assert watched.loads == NAMES and watched.alive == [0, 1, 2], "not all stayed loaded"
    there, back = NAMES, NAMES[::-1]
    turns = [*there, *back, *there, *back, *there]  # Two to warm up, and three that are timed.
    assert watched.prompts == [(name, batch) for batch in (1, 3) for name in turns]
    for records in found.values():
        assert [(record["new_tokens"], record["batch"]) for record in records] == [(2, 1), (2, 3)]
        assert {(r["loaded"], r["rounds"], r["warm_up"], r["repeats"]) for r in records} == {("together", 3, 2, 3)}
    assert [line.split(": dense")[0] for line in said] == ["cost: batch 1, 2 new tokens", "cost: batch 3, 2 new tokens"]


def test_models_that_do_not_fit_are_loaded_in_turn_and_go_through_all_sizes(watched):
    found, _ = measure(watched, CostProtocol(4, (2,), (1, 3), warm_up=1, repeats=4), together=False)
    turns = [*NAMES, *NAMES[::-1], *NAMES]
    assert watched.loads == turns and set(watched.alive) == {0}, f"held at each load: {watched.alive}"
    assert watched.prompts == [(name, batch) for name in turns for batch in (1, 3) for _ in range(1 + 2)]
    for records in found.values():
        assert {(r["loaded"], r["rounds"], r["repeats"]) for r in records} == {("in turn", ROUNDS, 6)}


def test_two_models_of_one_architecture_cost_the_same_on_a_machine_that_slows_down(watched):
    """Every forward takes 3 ms longer than the one before: one model after the other would differ by far."""
    taken = []

    def slower(*_):
        taken.append(0.003 * len(taken))
        time.sleep(taken[-1])

    watched.on_forward = slower
    found, _ = measure(watched, CostProtocol(4, (2,), (1,), warm_up=1, repeats=6), names=["pruned", "regrown"])
    assert taken[-1] > 2 * taken[len(taken) // 3], "shows nothing: the machine did not slow down"
    for part in ("latency_seconds", "first_token_seconds", "further_token_seconds"):
        one, other = (found[name][0][part]["median"] for name in ("pruned", "regrown"))
        assert max(one, other) / min(one, other) < 1.35, f"{part}: {one} s and {other} s for the same work"


def test_prefill_and_decoding_add_up_to_the_whole(watched):
    (record,) = measure(watched, CostProtocol(30, (8,), (2,), warm_up=1, repeats=7), names=["one"])[0]["one"]
    first, further, whole = (
        record[part] for part in ("first_token_seconds", "further_token_seconds", "latency_seconds")
    )
    for spread in (first, further, whole):
        ordered = [spread[name] for name in ("lowest", "lower_quartile", "median", "upper_quartile", "highest")]
        assert ordered == sorted(ordered) and ordered[0] > 0
    assert whole["lowest"] <= first["median"] + 7 * further["median"] <= whole["highest"]
    assert record["tokens_per_second"] == pytest.approx(16 / whole["median"])
    assert record["decoding_tokens_per_second"] == pytest.approx(2 / further["median"])
    assert record["peak_memory_bytes"] is record["peak_memory_of"] is None, "nobody counted any memory"


def test_a_batch_that_does_not_fit_is_recorded_and_larger_ones_are_not_tried(watched):
    watched.on_forward = limit({"dense": 2})
    protocol = CostProtocol(4, (2, 5), (1, 2, 4, 8), warm_up=1, repeats=2)
    found, said = measure(watched, protocol, together=False, names=["dense", "pruned"])
    assert outcomes(found) == {
        "dense": [
            "measured",
            "measured",
            "out of memory",
            "not tried",
            "measured",
            "measured",
            "not tried",
            "not tried",
        ],
        "pruned": ["measured"] * 8,
    }
    assert watched.prompts.count(("dense", 4)) == 1 and ("dense", 8) not in watched.prompts
    assert found["dense"][2] == {"prompt_tokens": 4, "new_tokens": 2, "batch": 4, "outcome": "out of memory"}
    assert said[0] == "cost: dense does not fit with batch 4, 2 new tokens; what takes no less is not tried"
    assert set(watched.alive) == {0}, f"the error held a model: {watched.alive}"


def test_models_that_run_out_side_by_side_are_tried_alone(watched):
    """Batch 4 has room beside no other model."""

    def crowded(name, batch, alive):
        if batch == 4 and alive > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    watched.on_forward = crowded
    found, said = measure(watched, CostProtocol(4, (2,), (1, 4), warm_up=0, repeats=3), names=NAMES[:2])
    for name, records in found.items():
        assert [r["outcome"] for r in records] == ["measured"] * 2, name
        assert [(r["loaded"], r["repeats"]) for r in records] == [("together", 3), ("in turn", 3)], name
    assert "cost: batch 4, 2 new tokens: the models do not fit side by side, and are loaded one by one" in said
    assert watched.alive == [0, 1] + [0] * 6, "the models that stood together were still held"


def test_what_is_known_not_to_fit_is_not_tried_and_a_model_that_fits_nowhere_not_loaded(watched):
    peaks = {
        "dense": {Size(2, 1): None, Size(2, 4): None},
        "pruned": {Size(2, 1): 700, Size(2, 4): None},
        "regrown": {Size(2, 1): 700, Size(2, 4): 900},
    }
    found, _ = measure(watched, CostProtocol(4, (2,), (1, 4), warm_up=0, repeats=1), peaks=peaks)
    assert outcomes(found) == {
        "dense": ["out of memory", "not tried"],
        "pruned": ["measured", "out of memory"],
        "regrown": ["measured", "measured"],
    }
    assert watched.loads == ["pruned", "regrown"]
    assert watched.prompts == [("pruned", 1), ("regrown", 1), ("regrown", 4)]
    assert [(r["peak_memory_bytes"], r["peak_memory_of"]) for r in found["regrown"]] == [
        (700, "process"),
        (900, "process"),
    ]


def test_what_was_known_not_to_fit_before_a_kill_is_not_tried_now(watched):
    protocol = CostProtocol(4, (2, 5), (1, 4), warm_up=0, repeats=1)
    known = {
        Size(2, 1): {"dense": {"outcome": "measured", "batch": 1}, "pruned": {"outcome": "measured", "batch": 1}},
        Size(2, 4): {"dense": {"outcome": "out of memory", "batch": 4}, "pruned": {"outcome": "measured", "batch": 4}},
    }
    kept = {}
    measuring = Measuring(
        NAMES[:2], watched, protocol, torch.arange(60), CPU, print, known=known, finished=kept.__setitem__
    )
    found = measure_cost(measuring, together=True, peaks={})
    assert outcomes(found) == {
        "dense": ["measured", "out of memory", "measured", "not tried"],
        "pruned": ["measured"] * 4,
    }
    assert found["dense"][0] is known[Size(2, 1)]["dense"]
    assert watched.prompts == [("dense", 1), ("pruned", 1), ("pruned", 4)]
    assert list(kept) == [Size(5, 1), Size(5, 4)] and kept[Size(5, 1)]["dense"] == found["dense"][2]


def test_another_error_is_none_of_memory(watched):
    def broken(name, batch, alive):
        raise RuntimeError("shapes cannot be multiplied")

    watched.on_forward = broken
    with pytest.raises(RuntimeError, match="shapes"):
        measure(watched, CostProtocol(4, (2,), (1,), 0, 1))
