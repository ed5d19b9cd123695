"""What a run will have on disk, beside what a finished one has, and what is free there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.commands.plan import plan
from pipeline.commands.plan_disk import Need, disks, exports_of
from pipeline.commands.plan_text import plan_text
from pipeline.config import load_config, load_written
from tests.commands.presets import PRESETS, preset


def items(made: dict) -> dict[str, int | None]:
    return {item["what"]: item["bytes"] for disk in made["disks"] for item in disk["items"]}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_finished_run_has_what_was_planned(reference: Path):
    config = load_written(reference / "config.yaml")
    checkpoints, exports, pruned = list(items(plan(config)).items())[:3]
    written = sorted((reference / "train" / "checkpoints").iterdir())
    # Steps 10 and 20, of which one is kept while the last, at 24, is written.
    assert checkpoints[0].startswith("3 checkpoints of ") and len(written) == 2
    assert sum(map(size, written)) == pytest.approx(checkpoints[1] * 2 / 3, rel=0.05)
    (export,) = (reference / "train" / "exports").iterdir()
    for folder, planned in ((export, exports[1]), (reference / "prune" / "model", pruned[1])):
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert weights == pytest.approx(planned, rel=0.05), folder


def test_retention_and_exports_are_counted():
    made = preset("2.7b", "train.export_every=50000", "train.keep_checkpoints=3", "train.keep_every=50000")
    words, kept = next(iter(items(made).items()))
    # Three, one being written, and those of steps 50,000 and 100,000; 12 bytes a parameter.
    assert kept == 6 * 12 * 2690748416
    of_them = "every 250 steps, keep_checkpoints 3, keep_every 50,000, one being written"
    assert words == f"6 checkpoints of 32.29 GB ({of_them})"
    assert items(made)["3 exports of 5.38 GB"] == 3 * 2 * 2690748416
    assert exports_of(load_config(PRESETS / "2.7b.yaml")) == 1
    adapters = items(preset("2.7b", "train.method=lora", "train.micro_batch=1"))
    assert next(iter(adapters.values())) < kept / 100


def test_what_is_fetched_and_what_is_tokenised_ahead_stand_there_too(tiny_config, tmp_path):
    remote = items(preset("2.7b", "data.cache_size=3e12"))
    assert remote["lmsys/vicuna-7b-v1.3, fetched"] == 2 * 6738415616
    assert remote["copies of remote shards (data.cache_size)"] == 3_000_000_000_000
    unlimited = items(preset("2.7b"))["copies of remote shards (as many as are read; data.cache_size limits them)"]
    assert unlimited is None and "unknown  copies" in plan_text(preset("2.7b"))
    made = plan(load_config(tiny_config, [f"data.tokenised={tmp_path}/ids", "score.loop=block-major"]))
    found = items(made)
    assert found["the corpus as token ids, 2 bytes a token"] == 2 * made["corpus"][0]["corpus_tokens"]
    assert found["states between blocks while scoring"] == made["scoring"]["states"] > 0
    assert not any("remote" in what or "fetched" in what for what in found)


def test_needs_are_set_against_what_is_free_where_they_lie(tmp_path):
    run, beside = tmp_path / "runs" / "mine", tmp_path / "ids"
    run.mkdir(parents=True)
    (run / "written").write_bytes(bytes(5_000_000))
    free = shutil.disk_usage(tmp_path).free
    needs = [Need(run, "half", free // 2), Need(beside, "some more", free // 3), Need(Path("/nowhere/x"), "far", 10)]
    here, far = disks(needs, run)
    assert (here["folder"], here["bytes"], here["enough"]) == (str(run), free // 2 + free // 3, True)
    assert here["free"] == pytest.approx(free + 5_000_000, abs=2_000_000_000), "what the run has there counts as free"
    assert (far["free"], far["enough"]) == (None, None)
    (too_much,) = disks([Need(run, "all of it", 2 * free)], run)
    assert too_much["enough"] is False


def test_a_disk_that_is_too_small_is_said_before_the_run(tiny_config):
    made = plan(load_config(tiny_config, ["train.keep_checkpoints=1000000000", "train.tokens=1e12"]))
    assert made["disks"][0]["enough"] is False
    assert "NOT ENOUGH: free some" in plan_text(made) and "NOT ENOUGH" not in plan_text(plan(load_config(tiny_config)))
