"""A run that follows another: where its rows begin, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from pipeline.config import load_config
from pipeline.data.stream.position import Begin, Cursor, LaneCursor, from_json
from pipeline.errors import RegrowError
from pipeline.files import read_json
from pipeline.following import (
    begin_after,
    check_before,
    keep_position,
    position_hashes,
    require_before,
    runs_before,
)
from pipeline.inputs import Inputs
from pipeline.run import Run
from tests.data.stream.test_position import IDENTITY
from tests.records import stage_record


@pytest.fixture
def after(tiny_config, tmp_path):
    """A config whose run follows tmp_path/before, of which only stage train's record is there."""
    Run(tmp_path / "before").finish("train", stage_record())
    return load_config(tiny_config, [f"data.after={tmp_path / 'before'}"])


def test_the_position_holds_every_lane_that_any_run_read(after, tmp_path):
    """Lane 3 was read before alone, lane 5 again, lane 7 for the first time."""
    at = {lane: LaneCursor((Cursor(token=lane),)) for lane in (3, 5)}
    moved = {lane: LaneCursor((Cursor(token=10 * lane),)) for lane in (5, 7)}
    end = keep_position(Run(tmp_path / "before"), Begin(32, at), 16, moved, IDENTITY)
    found = begin_after(after, IDENTITY)
    assert end == found.row == 48
    assert found.cursors == {3: at[3], 5: moved[5], 7: moved[7]}
    assert len(position_hashes(after, Run(tmp_path / "run"))["after"]) == 64


def test_a_run_that_follows_none_begins_at_the_first_row(tiny_config, tmp_path):
    config, run = load_config(tiny_config), Run(tmp_path)
    assert begin_after(config, IDENTITY) == Begin()
    assert (position_hashes(config, run), check_before(config), runs_before(config)) == ({}, [], [])


def test_rows_of_another_stream_are_refused(after, tmp_path):
    keep_position(Run(tmp_path / "before"), Begin(), 16, {}, replace(IDENTITY, lanes=12))
    with pytest.raises(RegrowError, match=r"data\.lanes was 12, is 384"):
        begin_after(after, IDENTITY)


def test_a_run_that_is_not_done_or_kept_no_position_is_refused(after, tiny_config, tmp_path):
    with pytest.raises(RegrowError, match=r"data\.after .*before: train/position\.json is not there"):
        require_before(after)
    config = load_config(tiny_config, [f"data.after={tmp_path / 'no'}"])
    with pytest.raises(RegrowError, match=r"data\.after .*no: not the folder of a run whose stage train is done"):
        check_before(config)
    assert check_before(config, elsewhere=True) == [f"data.after: {tmp_path / 'no'} is not on this machine"]


def test_training_leaves_the_position_of_its_last_row(reference, tiny_config, tmp_path):
    """24 steps of 8 rows, as the last checkpoint has them."""
    run = Run(reference)
    position = read_json(run.stage("train") / "position.json")
    state = read_json(run.stage("train") / "checkpoints" / "step-00000024" / "state.json")
    assert (position["row"], position["identity"], position["lanes"]) == (192, state["identity"], state["lanes"])
    assert run.record("train")["result"]["rows"] == [0, 192]
    (before,) = runs_before(load_config(tiny_config, [f"data.after={reference}"]))
    assert (before["run"], before["blocks"], before["tokens"]) == ("tiny", 6, 12288)
    assert before["removed"] == read_json(run.stage("prune") / "prune.json")["removed"]
    # The stream of a run that follows goes on there.
    copied = tmp_path / "runs" / "tiny"
    shutil.copytree(run.stage("data"), copied / "data")
    text = Inputs(load_config(tiny_config, [f"data.after={reference}"]), Run(copied))
    stream = text.stream(step=2)
    assert stream.start == 192 + 16 and stream.cursors == from_json(position["lanes"])
