"""Starts and failures of a stage: noted, told in their order, and no part of a result or of progress."""

from __future__ import annotations

import os
import socket

from pipeline.run import Run
from pipeline.stages.history import (
    KEPT,
    failed_since_start,
    note_failure,
    note_silence,
    note_start,
    told_history,
)


def test_starts_and_failures_are_told_in_their_order(tmp_path):
    run = Run(tmp_path)
    run.stage("train").mkdir()
    assert told_history("train", run) == [] and not failed_since_start("train", run)
    note_start("train", run)
    note_failure("train", run, 3, "first line\n" + "x" * KEPT)
    assert failed_since_start("train", run)
    note_start("train", run)
    assert not failed_since_start("train", run)
    begun, failed, again = told_history("train", run)
    assert (begun["event"], begun["host"], begun["pid"]) == ("start", socket.gethostname(), os.getpid())
    assert (failed["event"], failed["rank"], len(failed["message"])) == ("failure", 3, KEPT)
    assert again["event"] == "start" and again["date"] >= begun["date"]
    assert run.outputs("train") == {}, "the history counts as a result, and a run that was killed has another one"


def test_an_end_without_a_message_is_noted_where_nothing_else_was(tmp_path):
    run = Run(tmp_path)
    run.stage("train").mkdir()
    note_start("train", run)
    note_silence("train", run)
    note_silence("train", run)
    assert [line["event"] for line in told_history("train", run)] == ["start", "failure"]
    note_start("train", run)
    note_failure("train", run, 0, "said why")
    note_silence("train", run)
    assert told_history("train", run)[-1]["message"] == "said why"


def test_a_start_that_was_refused_is_no_failure_of_a_stage(tmp_path):
    run = Run(tmp_path)
    note_failure("train", run, 0, "stage data is not done")
    assert not run.stage("train").exists()
