"""What scoring and choosing compute, against counts on paper and times of benchmarks/RESULTS.md."""

from __future__ import annotations

import pytest

from pipeline.commands.plan_scoring import compared, pruning_parts, scoring_parts, sweep_flops
from pipeline.commands.plan_time import Chip, Shape
from pipeline.config import Config, load_config
from tests import ROOT
from tests.commands.presets import PRESETS, preset
from tests.commands.test_plan_time import SMOLLM2

RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()


def of(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "demo.yaml", ["score.criteria=[ppl]", *overrides])


@pytest.fixture(scope="module")
def two_cores() -> Chip:
    """The machine of 2026-11-22, by its bare training loop: 0.1377 steps/s of 2,048 tokens through 21 blocks."""
    assert "0.1377 steps/s" in RESULTS
    trained = Shape(21, 21 * 3_540_096, SMOLLM2.outside, 576, 2)
    return Chip(0.1377 * 2048 * 3 * trained.forward(256), 1e15)


def test_the_sweep_is_counted_as_the_benchmarks_expect_it():
    """(1 + 2 + ... + L) b + (L + 1) h, without attention; and each window joins behind its last block."""
    b, h = 2 * 3_540_096, 2 * SMOLLM2.outside
    assert sweep_flops(SMOLLM2, 0) == pytest.approx(30 * 31 / 2 * b + 31 * h)
    # 27 windows of four blocks: the first runs on 26 blocks, the last on none.
    assert sweep_flops(SMOLLM2, 0, (4,)) - sweep_flops(SMOLLM2, 0) == pytest.approx(26 * 27 / 2 * b + 27 * h)


def test_scoring_takes_the_time_that_was_measured(two_cores):
    """Planned with the speed that training had on the same machine the same day. Of linear maps half are products in
    fp64, which a CPU is better at, beside bf16, than the planned GPU."""
    for criterion, measured, within in (("ppl", 34.24, 0.1), ("linear", 20.63, 0.4)):
        assert f"{measured} s" in RESULTS
        (part,) = scoring_parts(of(f"score.criteria=[{criterion}]"), SMOLLM2, 576, 0, 1)
        assert part.seconds(two_cores) == pytest.approx(measured, rel=within), criterion


def test_more_criteria_take_what_they_need():
    def flops(*criteria: str) -> float:
        return scoring_parts(of(f"score.criteria=[{','.join(criteria)}]"), SMOLLM2, 576, 9, 1)[0].flops

    tokens = 10 * 128
    assert flops("ppl", "block_influence") == flops("ppl"), "distances come with the sweep"
    assert flops("block_influence") == pytest.approx(tokens * (SMOLLM2.forward(128) - 2 * SMOLLM2.outside))
    assert flops("magnitude") == 0
    assert flops("ppl", "taylor") == flops("ppl") + 3 * tokens * SMOLLM2.forward(128)


def test_choosing_is_planned_where_it_runs_the_model():
    pruned = Shape(21, 21 * 3_540_096, SMOLLM2.outside, 576, 2)

    def parts(*overrides: str) -> list:
        return pruning_parts(of(*overrides), SMOLLM2, pruned, 576, 2)

    assert parts("prune.compare.enabled=false") == []
    (own,) = parts()
    # The dense model, PPL's set and the three controls, on 10 x 128 and 8 x 256 tokens.
    assert compared(of(), 30) == 5 and "5 sets" in own.what
    assert own.flops == 5 * (1280 * pruned.forward(128) + 2048 * pruned.forward(256))
    (greedy,) = parts("prune.selection=greedy")
    first, ninth = sweep_flops(SMOLLM2, 128), sweep_flops(Shape(22, 22 * 3_540_096, SMOLLM2.outside, 576, 2), 128)
    assert 9 * 1280 * ninth < greedy.flops - own.flops < 9 * 1280 * first and "9 greedy rounds" in greedy.what
    (maps,) = parts("prune.linear=true")
    assert maps.flops > own.flops and "linear maps" in maps.what
    (budget,) = parts("prune.perplexity=20", "prune.compare.enabled=false")
    assert budget.flops == 24 * 1280 * SMOLLM2.forward(128) and "up to 24 removals" in budget.what


def test_linear_maps_take_two_matrices_for_each_window():
    ours, linear = (preset("2.7b", f"score.criteria=[{named}]")["scoring"] for named in ("ppl", "ppl,linear"))
    # 31 windows of one block and 12 of the planned 20, without those that begin at block 0.
    assert linear["batch_major"] == 2 * 6738415616 + 2 * 8 * (31 + 12) * 4096**2 > ours["batch_major"]
    assert load_config(PRESETS / "2.7b.yaml").score.linear_n is None
