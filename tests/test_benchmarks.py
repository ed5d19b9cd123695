"""Each benchmark runs on a small shape, on the CPU, and its figures are those of real work. No time is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

BARE = ("bare_transformers", "bare_compiled", "bare_few")


def run_benchmark(name: str, *arguments: object) -> tuple[dict[str, Any], list[str]]:
    """The figures that a benchmark printed as JSON, and the Markdown table behind them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment = {key: value for key, value in environment.items() if key not in {"RANK", "WORLD_SIZE"}}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    lines = done.stdout.splitlines()
    place = next((number for number, line in enumerate(lines) if line.startswith("{")), None)
    assert place is not None, f"{name} printed no figures:\n{done.stdout}"
    figures = json.loads(lines[place])
    table = lines[place + 1 :]
    assert len(table) == 3 and len({line.count("|") for line in table}) == 1, f"{name} printed no table:\n{table}"
    assert figures["hardware"] in table[2] and figures["versions"] in table[2], f"{name}: hardware not named: {table}"
    return figures, lines[:place]


@pytest.mark.slow
def test_scoring_compares_equal_losses(tiny_model: Path, demo: Path) -> None:
    figures, before = run_benchmark(
        "scoring",
        "--model",
        tiny_model,
        "--text",
        demo / "text" / "train",
        "--sequences",
        3,
        "--length",
        32,
        "--dtype",
        "float32",
        "--repeats",
        2,
    )
    assert figures["largest_difference"] < 1e-5, f"the two ways gave other losses: {figures}"
    seconds = figures["seconds"]
    assert set(seconds) == {"sweep", "one_sequence", "all_sequences"} and min(seconds.values()) > 0, figures
    best = min(seconds["one_sequence"], seconds["all_sequences"])
    assert math.isclose(figures["ratio"], best / seconds["sweep"]), f"the ratio is not that of the seconds: {figures}"
    distances, processes = figures["with_distances"], figures["processes"]
    assert math.isclose(distances["ratio"], distances["seconds"] / seconds["sweep"]), figures
    # A map of 64 x 64 asks for 512 tokens to fit on, 16 sequences of 32: three of four of 22, the others judge it.
    assert figures["linear"]["sequences"] == 22 and figures["linear"]["seconds"] > 0, figures
    assert processes["largest_difference"] < 1e-5, f"two processes found other losses than one: {processes}"
    assert math.isclose(processes["speedup"], processes["one"] / processes["two"]), figures
    assert sum("the bar is" in line for line in before) == 3, f"not every figure was printed beside its bar: {before}"
    # 8 blocks of 43,136 parameters (attention 12,288, MLP 30,720, norms 128) and a head of 64,000:
    # (64 x 43,136 + 9 x 64,000) / (36 x 43,136 + 9 x 64,000).
    assert figures["predicted_ratio"] == pytest.approx(3_336_704 / 2_128_896), figures
    # 32 blocks of 202,383,360 parameters and a head of 131,072,000.
    expected = (1024 * 202_383_360 + 33 * 131_072_000) / (528 * 202_383_360 + 33 * 131_072_000)
    assert figures["predicted_ratio_7b"] == pytest.approx(expected), figures
    assert any(f"{expected:.2f} for a model of 7B" in line for line in before), f"no prediction printed: {before}"


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_training_compares_equal_work(tiny_model: Path, demo: Path, workers: int) -> None:
    figures, _ = run_benchmark(
        "training",
        "--model",
        tiny_model,
        "--text",
        demo / "text" / "train",
        "--separator",
        "eos",
        "--blocks",
        3,
        "--row-length",
        64,
        "--lanes",
        4,
        "--workers",
        workers,
        "--turns",
        2,
        "--steps",
        2,
    )
    assert len(figures["losses"]) == 5 and figures["losses"][-1] < figures["losses"][0], f"nothing learned: {figures}"
    # bf16 rounds at 4e-3 of a value; both loops make the same products from the same weights.
    assert figures["largest_loss_difference"] < 5e-3, f"the loops computed other losses: {figures}"
    assert figures["largest_norm_difference"] < 1e-2, f"the loops computed other gradients: {figures}"
    seconds = figures["seconds_per_step"]
    assert math.isclose(figures["overhead"], seconds["ours"] / seconds["bare"] - 1), figures
    assert 0 < figures["data_wait"] < seconds["ours"], f"reading text takes time, within the step: {figures}"


@pytest.mark.slow
def test_saving_measures_waits_of_both_ways(tmp_path: Path) -> None:
    small = ("--blocks", 2, "--width", 72, "--row-length", 16, "--repeats", 2, "--steps", 1)
    figures, _ = run_benchmark("saving", "--folder", tmp_path / "checkpoints", *small)
    assert figures["bytes"] == 12 * figures["parameters"] > 4e7, figures
    assert math.isclose(figures["share"], figures["background"] / figures["blocking"]), figures
    assert 0 < figures["background"] < figures["blocking"], figures
    assert not (tmp_path / "checkpoints").exists(), "checkpoints were left behind"


@pytest.mark.parametrize(
    "options", [(), pytest.param(("--zero-stage", 3, "--gradient-checkpointing", "selective"), marks=pytest.mark.slow)]
)
def test_throughput_counts_tokens_and_flops(options: tuple[object, ...]) -> None:
    figures, before = run_benchmark(
        "throughput",
        "--width",
        64,
        "--blocks",
        2,
        "--row-length",
        32,
        "--micro-batch",
        2,
        "--accumulation",
        2,
        "--steps",
        3,
        *options,
    )
    # Attention 4 x 64 x 64, MLP 3 x 64 x 172, two norms; one norm more; embedding and head of 32,000 x 64.
    block = 4 * 64 * 64 + 3 * 64 * 172 + 2 * 64
    assert figures["parameters"] == 2 * block + 64 + 2 * 32000 * 64, figures
    products = figures["parameters"] - 32000 * 64
    assert figures["flops_per_token"] == 6 * products + 12 * 2 * 64 * 32, f"not 6 N + 12 L W T: {figures}"
    assert any("6 N + 12 L W T" in line for line in before), f"the formula was not printed: {before}"
    # Three steps of 2 x 2 x 32 tokens; the medians of seconds and of tokens a second are those of one step.
    assert math.isclose(figures["tokens_per_second"] * figures["seconds_per_step"], 128, rel_tol=1e-6), figures
    assert len(figures["losses"]) == 4 and all(9 < loss < 12 for loss in figures["losses"]), (
        f"a loss near ln(32,000) = 10.4 was expected of random tokens: {figures}"
    )
    assert figures["mfu"] is None and figures["peak_memory"] > 1e8, f"a CPU has no known peak: {figures}"


@pytest.mark.slow
def test_the_ceiling_is_all_operations_over_all_seconds() -> None:
    figures, before = run_benchmark("ceiling", "--quick")
    operations = {name: 2 * math.prod(map(int, name.split(" x "))) for name in figures["products"]}
    assert len(before) == len(operations) == 6 and max(operations) == "512 x 512 x 512", figures
    seconds = sum(operations[name] / speed for name, speed in figures["products"].items())
    assert figures["ceiling"] == pytest.approx(sum(operations.values()) / seconds), figures
    assert figures["copied_bytes"] == 2**24 and figures["copy_bytes_per_second"] > 0, figures
    assert figures["peak_flops"] is None and figures["of_peak"] is None, f"a CPU has no known peak: {figures}"


@pytest.mark.slow
def test_data_compares_the_same_rows(tiny_model: Path, demo: Path) -> None:
    figures, before = run_benchmark(
        "data", "--model", tiny_model, "--text", demo / "text" / "train", "--separator", "eos", "--quick"
    )
    assert figures["same_rows"] is True, f"tokenised shards gave other rows than the text: {figures}"
    speed = figures["tokens_per_second"]
    readers = {"text", "tokenised", "datasets", "webdataset"}
    assert set(speed) == {*readers, *BARE} and min(speed.values()) > 0, figures
    bare = max(speed[name] for name in BARE)
    assert math.isclose(figures["of_bare"], speed["text"] / bare), f"not the ratio to the faster call: {figures}"
    assert math.isclose(figures["tokenised_times_text"], speed["tokenised"] / speed["text"]), figures
    resumes = figures["resume_seconds"]
    assert set(resumes) == {*readers, "synthetic"} and set(resumes["synthetic"]) == {"10", "2000"}, figures
    assert all(seconds > 0 for found in resumes.values() for seconds in found.values()), figures
    assert figures["position_bytes"]["7"] < 64 * 1024, f"the position of 384 lanes and 7 sources is large: {figures}"
    # 8 x 57,000 tokens/s.
    assert figures["workers_for_8_h100"] == math.ceil(456_000 / speed["text"]), figures
    assert any("456,000" in line for line in before), f"the arithmetic was not printed: {before}"
