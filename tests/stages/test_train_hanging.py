"""Training of which one process stands still: the others end in time, with a line, and the same command goes on."""

from __future__ import annotations

import signal

import pytest

from pipeline.run import Run
from pipeline.stages.history import told_history
from tests.phases import phase


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_training_in_time_and_nothing_is_lost(
    regrow, lengthen, copy_until, same_as_reference, tmp_path
):
    config, run = lengthen(tmp_path), copy_until("prune", tmp_path)

    with phase("rank 1 is stopped in a step, as by a driver or a disk that hangs"):
        command = regrow("train", config, "train.hang_seconds=15")
        command.read_until("[train] step 11 of 24")
        stopped = next(process for process in command.family() if process.name() == "regrow-rank-1")
        stopped.send_signal(signal.SIGSTOP)
        assert command.wait(120) == 1, command.output
        said = [line for line in command.output.splitlines() if line.startswith("regrow")]
        assert len(said) == 1, f"not one message but: {said}"
        assert said[0].startswith("regrow (rank 0): no progress for 15 s (train.hang_seconds) at: step 1"), said
        assert "it stands in pipeline." in said[0]
        stacks = (run / "train/stacks/rank-0.txt").read_text()
        assert "in sum_gradients" in stacks or "in _summed" in stacks, "not where it waits for the other"
        failure = told_history("train", Run(run))[-1]
        assert failure["message"].startswith("no progress for 15 s"), "status cannot tell it"
        assert not stopped.is_running(), "the process that was stopped is left"

    with phase("the same command goes on"):
        command = regrow("train", config)
        assert command.wait() == 0, command.output
        assert "[train] resuming at step 10 of 24" in command.output
        same_as_reference(run)
