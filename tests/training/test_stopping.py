"""Stopping between steps: what a start of training leaves behind; in processes of their own in tests/stages."""

from __future__ import annotations

import json
import signal

import pytest

from pipeline.life import Teller
from pipeline.stopping import STOPPED, noting, why_asked
from pipeline.training.stopping import stopping
from pipeline.world import ALONE
from tests.test_stopping import wait_for


@pytest.fixture
def said():
    return []


@pytest.fixture
def say(said):
    return Teller(said.append, said.append)


def test_training_to_its_end_leaves_done_and_takes_away_what_was_there(tmp_path, say, said):
    for name in ("REQUEUE", "STOP", "DONE"):
        (tmp_path / name).touch()
    with stopping(tmp_path, ALONE, say) as stop:
        assert not list(tmp_path.iterdir()), "a start goes on beside what an earlier one left"
        stop.look()
    assert [path.name for path in tmp_path.iterdir()] == ["DONE"] and not said


@pytest.mark.parametrize("step", [0, 300])
def test_who_is_asked_stops_at_a_look_and_says_why(tmp_path, say, said, step):
    if step:
        (tmp_path / "checkpoints" / "step-00000300").mkdir(parents=True)
        (tmp_path / "checkpoints" / "step-00000300" / "COMPLETE").touch()
    with noting(), pytest.raises(SystemExit) as ended, stopping(tmp_path, ALONE, say) as stop:
        stop.look()
        signal.raise_signal(signal.SIGTERM)
        assert wait_for(why_asked)
        (tmp_path / "STOP").touch()
        stop.saved = 1.5
        stop.look()
        raise AssertionError("it went on")
    assert ended.value.code == STOPPED
    told = json.loads((tmp_path / "REQUEUE").read_text())
    assert told | {"date": ""} == {"why": "SIGTERM on rank 0", "step": step, "date": "", "save_seconds": 1.5}
    assert not (tmp_path / "DONE").exists() and not (tmp_path / "STOP").exists()
    where = (
        "at step 300 by SIGTERM; checkpoint written" if step else "before its first step by SIGTERM; nothing to save"
    )
    assert said == [f"stopped {where}; the same command goes on"]
