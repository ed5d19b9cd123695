"""The order of the stages: what is skipped, refused and redone, one command at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT


@pytest.fixture
def done(lengthen, copy_until, tmp_path) -> tuple[Path, Path]:
    """(config, run folder) of a run that is done to the end."""
    return lengthen(tmp_path), copy_until("report", tmp_path)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of the stages, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {"log.txt", ".lock", "config.yaml", "started.json"}
    }


# Done, stale, missing.


@pytest.mark.parametrize(
    ("override", "stage", "difference"),
    [
        ("score.seed=7", "score", "score.seed: was 1234, is 7"),
        ("prune.remove=3", "prune", "prune.remove: was 2, is 3"),
        ("train.learning_rate=2e-3", "train", "train.learning_rate: was 0.001, is 0.002"),
        ("evaluate.generation.new_tokens=5", "evaluate", "evaluate.generation.new_tokens: was 4, is 5"),
    ],
)
def test_a_changed_config_of_a_done_stage_is_refused(refused, done, override, stage, difference):
    config, run = done
    before = snapshot(run)
    message = refused("run", config, override)
    for part in (f"stage {stage} is done, but not with this config", difference, f"--redo {stage}"):
        assert part in message, f"{part!r} is not in: {message}"
    assert snapshot(run) == before, "a refused command changed the run"


def test_a_stage_that_was_begun_with_another_config_is_refused(refused, lengthen, copy_until, tmp_path):
    config, run = lengthen(tmp_path), copy_until("train", tmp_path)
    (run / "train" / "stage.json").unlink()
    message = refused("run", config, "train.warmup=0.5")
    assert "stage train was begun with another config" in message
    assert "train.warmup: was 0.01, is 0.5" in message


def test_a_key_of_the_report_makes_the_report_anew_alone(here, done):
    config, run = done
    before = snapshot(run)
    status, out, message = here("run", config, "report.title=Another title")
    assert status == 0, message
    assert out.count("done before, skipped") == 5
    why = 'report.title: was null, is "Another title"'
    assert f"[report] made anew ({why}); what there was is in {run}/aside/001/report" in out
    assert "Another title" in (run / "report" / "index.html").read_text()
    after = snapshot(run)
    for name, content in before.items():
        place = name.replace("report/", "aside/001/report/", 1) if name.startswith("report/") else name
        # The card of the new page replaces the one in the export.
        assert after[place] == content or place.endswith("exports/step-00000024/README.md"), f"{name} is lost"


def test_redo_takes_all_later_stages_along(here, done):
    """And what cannot work is refused first: nothing is moved then."""
    config, run = done
    before = snapshot(run)
    assert here("run", config, "prune.remove=7", "--redo", "prune")[0] == 1
    assert snapshot(run) == before, "a refused --redo moved something"
    status, _, message = here("prune", config, "prune.remove=1", "--redo", "prune")
    assert status == 0, message
    moved = sorted(path.name for path in (run / "aside" / "001").iterdir())
    assert moved == ["evaluate", "prune", "report", "train"], f"aside are {moved}"
    record = json.loads((run / "prune" / "stage.json").read_text())
    assert len(record["result"]["removed"]) == 1
    kept = snapshot(run / "aside" / "001")
    for name, content in before.items():
        if name.split("/")[0] in moved:
            assert kept[name] == content, f"{name} is lost"


def test_until_stops_behind_a_stage_and_a_missing_one_names_the_command(here, refused, lengthen, tmp_path):
    config = lengthen(tmp_path)
    message = refused("train", config, "run.name=fresh")
    assert f"stage prune is not done yet; first run: regrow run {config} run.name=fresh --until prune" in message
    assert here("run", config, "run.name=fresh", "--until", "data")[0] == 0
    assert sorted(path.parent.name for path in tmp_path.glob("runs/fresh/*/stage.json")) == ["data"]
    message = refused("run", config, "--until", "prunes")
    assert "'prunes' is not a stage; the stages are data, score, prune, train, evaluate, report" in message


def test_a_model_that_changed_under_a_done_run_is_noticed(refused, done, tiny_model, tmp_path):
    config, _ = done
    shutil.copytree(tiny_model, tmp_path / "model")
    settings = tmp_path / "model" / "generation_config.json"
    settings.write_text(settings.read_text().replace("}", ', "max_length": 77}'))
    message = refused("run", config, f"model.path={tmp_path}/model")
    assert "input model/generation_config.json changed" in message


IMPATIENT = """
import sys
import time
from pipeline import life
from pipeline.cli import main
life.FIRST = life.BETWEEN = 0.02
sys.exit(main())
"""


def impatient(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, whose stages say that they go on after hundredths of a second."""
    command = [sys.executable, "-c", IMPATIENT, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def test_a_stage_that_says_nothing_new_says_that_it_goes_on(tiny_config, tmp_path):
    """Whatever it does, and in log.txt too."""
    done = impatient("data", tiny_config)
    alive = [line for line in done.stdout.splitlines() if line.startswith("[data] still at it, 0 s after: ")]
    assert alive, f"what was said last is not repeated:\n{done.stdout}"
    assert alive[0].removeprefix("[data]") in (tmp_path / "runs" / "tiny" / "log.txt").read_text()


def test_a_long_training_step_says_which_micro_batch_is_at_work(lengthen, copy_until, tmp_path):
    """The one process of an outside launcher takes its place in the command's own process."""
    config = lengthen(tmp_path)
    copy_until("prune", tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = impatient("train", config, "train.tokens=512", **place)
    assert re.search(r"^\[train\] step 1: (reading|computing) micro-batch \d of \d, 0 s$", done.stdout, re.M), (
        done.stdout
    )
