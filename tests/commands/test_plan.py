"""The plan of the published presets, against numbers written down by hand; and what a plan refuses."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.commands.plan import plan
from pipeline.commands.plan_text import plan_text
from pipeline.config import load_config
from pipeline.errors import RegrowError
from tests.commands.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("size", "blocks", "parameters", "tokens", "steps"),
    [
        ("5.5b", 26, 5524115456, 37000000000, 35286),
        ("3.7b", 17, 3702665216, 74000000000, 70572),
        ("2.7b", 12, 2690748416, 150000000000, 143052),
        ("1.5b", 6, 1476448256, 271000000000, 258446),
    ],
)
def test_presets_have_the_published_numbers(size: str, blocks: int, parameters: int, tokens: int, steps: int) -> None:
    made = preset(size)
    assert made["blocks"] == {"dense": 32, "removed": 32 - blocks, "pruned": blocks, "uniform": True}
    assert made["parameters"] == {"dense": 6738415616, "pruned": parameters, "trained": parameters}
    training = made["training"]
    assert (training["tokens"], training["steps"]) == (tokens, steps)
    # A step is 512 rows of 2048 tokens: the last step reaches the budget and the one before it does not.
    assert (steps - 1) * 1048576 < tokens <= steps * 1048576
    # As many rows as are planned to fit; the published recipe is one key away.
    fitting = {"5.5b": (1, 64), "3.7b": (4, 16), "2.7b": (8, 8), "1.5b": (16, 4)}[size]
    assert (training["micro_batch"], training["accumulation"], training["processes"]) == (*fitting, 8)
    assert training["gradient_checkpointing"] == "none"
    recipe = preset(size, "train.micro_batch=2")["training"]
    assert (recipe["micro_batch"], recipe["accumulation"]) == (2, 32)


@pytest.mark.parametrize(
    ("size", "flops", "speed", "days"),
    [
        ("5.5b", 34975506432, 14144.2, 3.785),
        ("3.7b", 23140835328, 21377.8, 5.008),
        ("2.7b", 16566018048, 29862.3, 7.267),
        ("1.5b", 8676237312, 57017.7, 6.876),
    ],
)
def test_flops_and_time_at_half_the_peak(size: str, flops: int, speed: float, days: float) -> None:
    """On paper: 6 x (parameters - 32000 x 4096) + 12 x blocks x 4096 x 2048; 0.5 x 989.4e12 / that; tokens / 8 x."""
    made = preset(size)
    assert made["flops"]["per_token"] == flops
    half = made["time"][-1]
    assert half["mfu"] == 0.5
    assert half["tokens_per_second_per_gpu"] == pytest.approx(speed, rel=1e-5)
    assert half["days"] == pytest.approx(days, rel=1e-3)
    assert half["gpu_hours"] == pytest.approx(half["days"] * 24 * 8)


def test_plan_is_json_and_its_text_carries_the_numbers() -> None:
    made = preset("2.7b")
    assert json.loads(json.dumps(made)) == made
    text = plan_text(made)
    for part in ("6,738,415,616 -> 2,690,748,416", "143,052 steps", "32 -> 12", "*    1", "days on 8"):
        assert part in text, f"{part!r} is missing in:\n{text}"


def test_a_price_is_of_training_and_of_the_whole_run() -> None:
    free, priced = preset("2.7b"), plan(load_config(PRESETS / "2.7b.yaml"), price=2.5)
    assert free["price"] is None and "dollars" not in plan_text(free)
    for row in priced["time"]:
        assert row["dollars"] == pytest.approx(2.5 * row["gpu_hours"])
    trained = next(row for row in priced["whole"] if row["what"] == "143,052 steps of 1,048,576 tokens")
    assert trained["dollars"] == pytest.approx(priced["time"][1]["dollars"])
    text = plan_text(priced)
    in_all = next(line.split() for line in text.splitlines() if line.startswith("  in all"))
    assert float(in_all[-1].replace(",", "")) == pytest.approx(sum(row["dollars"] for row in priced["whole"]), abs=0.01)
    for part in ("dollars", f"{priced['time'][1]['dollars']:,.2f}", "perplexity of 3 models: held_out 256 x 2,048"):
        assert part in text, f"{part!r} is missing in:\n{text}"


def test_the_whole_run_has_the_stages_that_are_asked_for() -> None:
    config = load_config(PRESETS / "2.7b.yaml", ["train.export_every=50000"])
    made = plan(config, price=2.0)
    assert list(dict.fromkeys(row["stage"] for row in made["whole"])) == ["score", "prune", "train", "evaluate"]
    *_, in_all, beside = [line for line in plan_text(made).splitlines() if line.startswith(("  in all", "  beside it"))]
    assert "--export all: 3 exports" in beside and beside.split()[2] != in_all.split()[2]
    cut = plan(config, ["data", "score", "prune"])
    assert {row["stage"] for row in cut["whole"]} == {"score", "prune"}
    assert plan(config, ["data"])["whole"] == [] and "the whole run" not in plan_text(plan(config, ["data"]))


def test_memory_covers_every_stage_and_shrinks_with_it() -> None:
    totals = [row["total"] for row in preset("5.5b")["memory"]]
    assert len(totals) == 4
    assert totals == sorted(totals, reverse=True), totals


def test_scoring_says_which_loop_and_what_it_takes() -> None:
    scoring = preset("2.7b")["scoring"]
    assert (scoring["loop"], scoring["weights"]) == ("batch-major", 2 * 6738415616)
    # Ten sequences with 32 states each enter the last block, while one of them also has its file of the block before.
    assert scoring["states"] == (10 * 32 + 31) * 128 * 4096 * 2
    assert scoring["block_major"] < scoring["weights"] / 3 < scoring["batch_major"]
    in_blocks = ["score.loop=block-major", "score.criteria=[ppl, angular_last]", "prune.compare.enabled=false"]
    streamed = preset("2.7b", *in_blocks)["scoring"]
    assert streamed["loop"] == "block-major" and streamed["states"] > scoring["states"]


def test_stages_that_are_not_asked_for_refuse_nothing() -> None:
    config = load_config(PRESETS / "2.7b.yaml", ["data.held_out=null", "model.dtype=float16"])
    assert plan(config, ["data", "score", "prune"])["blocks"]["pruned"] == 12


def test_a_budget_is_said_to_be_open() -> None:
    assert any(note.startswith("prune.perplexity decides") for note in preset("2.7b", "prune.perplexity=20")["notes"])


def test_tight_memory_is_said() -> None:
    assert any("zero_stage 1" in note for note in preset("5.5b", "train.micro_batch=2")["notes"])
    (lanes,) = [note for note in preset("1.5b", "train.micro_batch=2")["notes"] if " blocks " not in note]
    assert lanes.startswith("data.lanes auto: 1,536 where every source has so many"), lanes
    lanes, found = preset("5.5b")["notes"]
    assert found.startswith("train.micro_batch auto: what is planned to fit on NVIDIA H100"), found
    with pytest.raises(RegrowError, match=r"zero_stage 1 on 1 GPUs not one row is planned to fit into 80\.00 GB"):
        preset("5.5b", "train.processes=1")


@pytest.mark.parametrize(
    ("override", "removed"),
    [
        ("prune.ratio=0.2", 6),
        ("prune.ratio=0.6", 19),
        ("prune.parameters=2.7e9", 20),
        ("prune.blocks=[10, 11, 12]", 3),
        ("prune.blocks=block_order.csv", 20),
        ("prune.perplexity=20", 0),
    ],
)
def test_the_other_ways_of_stating_the_cut(override: str, removed: int) -> None:
    made = preset("2.7b", override)
    assert made["blocks"]["removed"] == removed
    assert made["parameters"]["pruned"] == 6738415616 - removed * 202383360
    elsewhere = ["prune.blocks block_order.csv: not on this machine"]
    assert [note for note in made["notes"] if "block_order" in note] == (elsewhere if "csv" in override else [])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("prune.remove=27", ["27", "26 of 32"]),
        ("prune.protect_first=20", ["20", "10 of 32"]),
        ("prune.blocks=[3, 32]", ["32", "0 to 31"]),
        ("train.micro_batch=3", ["512", "3 x 8", "504 or 528"]),
        ("train.processes=7", ["512", "1 x 7", "8 processes"]),
        ("score.ppl_n=[40]", ["score.ppl_n 40", "32 blocks"]),
        ("model.dtype=float16", ["float16", "loss scaling"]),
        ("score.criteria=[block_influence]", ["prune.criterion", "score.criteria"]),
        ("data.held_out=null", ["data.held_out", "evaluate"]),
        ("data.tokenised=/proc/ids", ["data.tokenised", "/proc/ids"]),
    ],
)
def test_impossible_plans_are_refused_with_the_numbers(override: str, named: list[str]) -> None:
    with pytest.raises(RegrowError) as refusal:
        preset("2.7b", override)
    assert all(part in str(refusal.value) for part in named), str(refusal.value)


def test_a_model_that_is_too_large_for_a_gpu_is_spread_or_refused() -> None:
    streamed, limit = "score.loop=block-major", "model.device_memory=5e9"
    (note,) = [note for note in preset("2.7b", streamed, limit)["notes"] if "model.dispatch" in note]
    assert "13.48 GB) do not fit into 5.00 GB of a GPU" in note and "3 GPUs hold it" in note
    assert not [note for note in preset("2.7b", streamed)["notes"] if "model.dispatch" in note]
    with pytest.raises(RegrowError, match=r"set model\.dispatch=auto, or prune\.compare\.enabled=false"):
        preset("2.7b", streamed, "model.dispatch=false")


def test_without_a_gpu_auto_is_planned_as_a_run_would_start_here():
    here = torch.cuda.device_count()
    made = preset("2.7b", "train.processes=auto")
    assert made["training"]["processes"] == (here or 1)
    assert any("no GPU" in note and "train.processes=8" in note for note in made["notes"]) == (not here), made["notes"]
    # A batch that a run takes here is no reason to refuse the plan.
    two = ["train.processes=auto", "train.global_batch=6", "train.micro_batch=2"]
    assert here or preset("2.7b", *two)["training"]["accumulation"] == 3


def test_whole_steps_that_stretch_the_budget_are_said():
    made = preset("2.7b", "train.tokens=20000")
    assert made["training"]["steps"] == 1
    (note,) = [note for note in made["notes"] if "times the budget" in note]
    for part in (
        "one step is 52 times the budget",
        "20,000 becomes 1,048,576",
        "train.global_batch",
        "data.row_length",
    ):
        assert part in note, note
    assert any("2 steps are 1.3 times" in note for note in preset("2.7b", "train.tokens=1.6e6")["notes"])
    assert not any("budget" in note for note in preset("2.7b", "train.tokens=3e6")["notes"])


def test_rows_longer_than_the_models_positions_are_noted() -> None:
    made = preset("2.7b", "data.row_length=4096")
    assert any("4096" in note and "2048" in note for note in made["notes"]), made["notes"]
