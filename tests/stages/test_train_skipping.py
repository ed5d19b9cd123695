"""Training that skips bad steps, through the command: what it writes, and that a kill changes nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.phases import phase

STEPS = 12
#: Losses that lie this little above the last three are spikes: several of the steps.
ASKED = (f"train.tokens={STEPS * 512}", "train.spike=0.5", "train.spike_window=3", "train.checkpoint_every=4")


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train" / name).read_text().splitlines()]


def weights(run: Path) -> bytes:
    return (run / f"train/exports/step-{STEPS:08d}/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_that_skips_steps_is_killed_and_decides_the_same(regrow, lengthen, copy_until, tmp_path):
    config, whole, killed = lengthen(tmp_path), *(copy_until("prune", tmp_path, name) for name in ("whole", "killed"))

    with phase("undisturbed"):
        command = regrow("train", config, "run.name=whole", f"train.bad_steps={STEPS}", *ASKED)
        assert command.wait() == 0, command.output
        metrics, bad = lines(whole, "metrics.jsonl"), lines(whole, "bad_steps.jsonl")
        skipped = [line["step"] for line in metrics if line.get("skipped")]
        assert max(skipped) > 4 and len(skipped) < STEPS - 4, f"skipped {skipped}, which shows little"
        assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
        assert [line["step"] for line in bad] == skipped
        for line in bad:
            first = (line["step"] - 1) * 8
            assert [row["index"] for row in line["rows"]] == list(range(first, first + 8)), "not the rows of all"
            assert {row["source"] for row in line["rows"]} == {0}
            assert all(row["shard"].endswith(".jsonl.zst") and row["documents"] >= 1 for row in line["rows"])
            assert metrics[line["step"] - 1]["reason"] == line["reason"]
            assert metrics[line["step"] - 1]["grad_norm"] is None
            assert f"step {line['step']} of {STEPS}: skipped, for the loss is a spike" in command.output

    with phase("killed behind a skipped step, and resumed at a checkpoint before it"):
        begun = regrow("train", config, "run.name=killed", f"train.bad_steps={STEPS}", *ASKED)
        begun.read_until(f"step {max(skipped)} of {STEPS}: skipped")
        begun.kill()
        begun.wait()
        command = regrow("train", config, "run.name=killed", f"train.bad_steps={STEPS}", *ASKED)
        assert command.wait() == 0, command.output
        assert "resuming at step" in command.output
        assert weights(killed) == weights(whole), "the resumed run ends in other weights"
        assert lines(killed, "bad_steps.jsonl") == bad
