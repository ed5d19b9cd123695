"""Arms of recovery side by side: a small grid on the tiny model, killed between arms, and its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.config.reading import yaml_reader
from tests import ROOT

GRID = """
cuts: {cut2: [prune.remove=2]}
arms:
  cpt: [train.learning_rate=1e-3]
  both: [train.objective=both]
  steps: [chain.parts=2]
chains: [steps]
"""


def compare(*arguments: object) -> str:
    """What benchmarks/recovery.py prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / "recovery.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_arm_of_the_grid_is_a_config(tiny_config):
    grid = yaml_reader("safe").load(ROOT / "benchmarks" / "recovery.yaml")
    assert set(grid["chains"]) <= grid["arms"].keys()
    for cut, overrides in grid["cuts"].items():
        for arm, keys in grid["arms"].items():
            config = load_config(tiny_config, [*overrides, *keys, f"run.name={cut}-{arm}"])
            assert (config.chain.parts is not None) == (arm in grid["chains"]), f"{arm}: a chain, or not"


@pytest.mark.slow
def test_arms_have_one_cut_and_one_table(tiny_config: Path, tmp_path: Path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    small = tiny_config.with_name("small.yaml")
    small.write_text(
        f"extends: {tiny_config.name}\ntrain: {{processes: 1, export_every: 4}}\nevaluate: {{processes: 1}}\n"
    )
    compare(grid, small, "--only", "cpt")
    again = compare(grid, small)
    assert again.count("[train] step 1 of 8") == 1, "cpt was trained twice, or both not at all"
    runs = load_config(small).run.folder
    figures = json.loads((runs / "recovery.json").read_text())
    assert [found["arm"] for found in figures] == ["cpt", "both", "steps"]
    cuts = {(runs / f"cut2-{arm}" / "prune" / "prune.json").read_bytes() for arm in ("cut", "cpt", "both")}
    assert len(cuts) == 1, "arms began with other cuts"
    assert {found["tokens"] for found in figures} == {4096}, "arms were not trained on as many tokens"
    cpt, both, _ = figures
    assert [point["step"] for point in cpt["points"]] == [4, 8] and both["flops"] > cpt["flops"]
    table = (runs / "recovery.md").read_text()
    assert (
        table in again
        and "| both |" in table
        and f"{cpt['points'][-1]['perplexity']['held_out']['value']:.2f}" in table
    )
