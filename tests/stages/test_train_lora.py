"""A run whose training is of adapters: killed and resumed to the same bytes, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.files import hash_file, read_json
from pipeline.model.load import load_model
from tests.phases import phase

STEPS = 6
#: So much dropout that another draw shows.
CONFIG = """extends: longer.yaml
run: {{name: {name}}}
train:
  tokens: 3072
  method: lora
  lora: {{dropout: 0.5}}
  learning_rate: 2e-2
  zero_stage: 2
  checkpoint_every: 2
  evaluate_every: 3
  export_every: 3
"""


def losses(run: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return [[line["step"], line["loss"], line["grad_norm"]] for line in lines]


@pytest.mark.slow
def test_a_killed_run_of_adapters_ends_as_the_one_that_was_not(regrow, lengthen, copy_until, reference, tmp_path):
    lengthen(tmp_path)
    whole, killed = (copy_until("prune", tmp_path, name) for name in ("whole", "killed"))
    configs = {}
    for run in (whole, killed):
        configs[run] = tmp_path / f"{run.name}.yaml"
        configs[run].write_text(CONFIG.format(name=run.name))
    command = regrow("train", configs[whole])
    assert command.wait() == 0, command.output
    with phase("what it says and writes"):
        assert "LoRA: 53,760 parameters are trained beside" in command.output, command.output
        held_out = [json.loads(line) for line in (whole / "train" / "held_out.jsonl").read_text().splitlines()]
        before = json.loads((reference / "train" / "held_out.jsonl").read_text().splitlines()[0])
        assert held_out[0]["held_out_loss"] == before["held_out_loss"], "step 0 is not the pruned model"
        assert held_out[-1]["held_out_loss"] < held_out[0]["held_out_loss"], "adapters learned nothing"
        exports = sorted(path.name for path in (whole / "train" / "exports").iterdir())
        assert exports == ["step-00000003", "step-00000006"]
        export = whole / "train" / "exports" / exports[-1]
        assert (export / "adapter" / "adapter_model.safetensors").is_file()
        merged, pruned = load_model(export).state_dict(), load_model(whole / "prune" / "model").state_dict()
        same = {name for name in merged if torch.equal(merged[name], pruned[name])}
        assert "lm_head.weight" in same and "model.layers.2.self_attn.q_proj.weight" not in same
        record = read_json(whole / "train" / "stage.json")
        assert f"exports/{exports[-1]}/adapter/adapter_model.safetensors" in record["outputs"]
    with phase("killed behind step 4 and started again"):
        command = regrow("train", configs[killed])
        command.read_until("step 5 of 6")
        command.kill()
        command.wait()
        again = regrow("train", configs[killed])
        assert again.wait() == 0 and "resuming at step 4" in again.output, again.output
        assert losses(killed) == losses(whole) and len(losses(whole)) == STEPS
        for path in export.rglob("*.safetensors"):
            twin = killed / path.relative_to(whole)
            assert hash_file(twin) == hash_file(path), f"{path.relative_to(export)} has other bytes"
