"""A run that goes on with other processes and another ZeRO stage: the same samples in the same order, losses near."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

#: Chains of starts: (processes, micro-batch, ZeRO stage, step of the checkpoint that it goes on from).
TO_FOUR = [(4, 1, 3, 3)]
TO_ONE_TO_FOUR = [(1, 4, 0, 3), (4, 2, 2, 6)]


@pytest.mark.slow
@pytest.mark.parametrize("chain", [TO_FOUR, TO_ONE_TO_FOUR], ids=["to-4", "to-1-to-4"])
def test_another_number_of_processes_goes_on_with_the_same_samples(regrow, logged, copy_until, chain, tmp_path):
    whole, run = logged.parent / "runs" / "tiny" / "train", copy_until("prune", tmp_path)
    config = tmp_path / "elastic.yaml"
    config.write_text(f"extends: {logged}\nrun: {{folder: {tmp_path}/runs}}\n")
    train = run / "train"
    shutil.copytree(whole / "checkpoints" / "step-00000003", train / "checkpoints" / "step-00000003")
    for name in ("metrics.jsonl", "held_out.jsonl", "samples.jsonl"):
        shutil.copy(whole / name, train)
    for number, (processes, rows, stage, step) in enumerate(chain):
        layout = (f"train.processes={processes}", f"train.micro_batch={rows}", f"train.zero_stage={stage}")
        command = regrow("train", config, *layout)
        if number + 1 < len(chain):
            command.read_until(f"[train] step {chain[number + 1][3] + 1} of 8")
            command.kill()
        status = command.wait()
        assert f"[train] resuming at step {step} of 8" in command.output, command.output
        assert command.output.count("[train] going on in another layout (processes was ") == 1, command.output
        assert status == 0 or number + 1 < len(chain), command.output
    assert (train / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes(), "other samples, or order"
    for name, keys in (("metrics.jsonl", ("loss",)), ("held_out.jsonl", ("held_out_loss",))):
        assert apart(train / name, whole / name, keys) < 1e-3, f"{name}: losses moved apart"


def apart(file: Path, other: Path, keys: tuple[str, ...]) -> float:
    """The largest difference of any of these values of two files of lines, which have the same steps."""
    lines, others = ([json.loads(line) for line in path.read_text().splitlines()] for path in (file, other))
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    return max(abs(line[key] - was[key]) for line, was in zip(lines, others, strict=True) for key in keys)
