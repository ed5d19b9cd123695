"""Adapters by peft under real DeepSpeed engines in two processes, beside peft and torch alone; and what is exported."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch
from peft import PeftModel

from pipeline.model.load import load_model
from pipeline.model.lora import Lora
from pipeline.training.adapters import add_adapters, describe_adapters
from pipeline.training.checkpoint import checkpoint_bytes
from pipeline.training.export import Origin, write_export
from pipeline.world import ALONE, World
from tests.families import build
from tests.training.cases import each
from tests.training.test_engine import assert_equal_to_the_plain_loop

LORA = Lora(4, 16.0, 0.05, ("q_proj", "down_proj"))


@pytest.mark.parametrize("stage", each("lora_parity-{}-fp32", range(4)))
def test_lora_steps_equal_those_of_peft_and_torch(measured, stage):
    found = measured(2)[f"lora_parity-{stage}-fp32"]
    assert_equal_to_the_plain_loop(found, f"LoRA, ZeRO {stage}")
    assert found["parameters"][0] == found["parameters"][1] == 3 * 8 * (64 * 4 + 64 * 2 + 32 * 2 + 3 * (64 + 192))


RESUMED = [*(f"lora_resume-{stage}-bf16" for stage in range(4)), "lora_compiled-1-bf16"]


@pytest.mark.parametrize("case", each("{}", RESUMED))
def test_a_resume_draws_the_same_dropout_and_ends_in_the_same_bytes(measured, case):
    found = measured(2)[case]
    straight, rest = ([[step["loss"], step["grad_norm"]] for step in found[part]] for part in ("whole", "rest"))
    assert rest == straight[2:], f"{case}: losses or norms after a resume are others"
    assert found["equal"], f"{case}: adapters after a resume are others"
    assert found["trained"] == ["lora_A", "lora_B"], "the engine gives other weights than the adapters'"


@pytest.mark.parametrize("stage", each("lora_resume-{}-bf16", range(4)))
def test_a_checkpoint_holds_the_adapters_alone(measured, stage):
    found = measured(2)[f"lora_resume-{stage}-bf16"]
    predicted = checkpoint_bytes(found["parameters"])
    # Names and random states: small beside the 250,000 bytes of the frozen weights.
    assert predicted <= found["bytes"] < predicted + 120_000, f"{found['bytes']} bytes, {predicted} were predicted"


@pytest.mark.slow
def test_recomputing_draws_the_same_dropout_again(measured):
    found = measured(2)["lora_recomputed-1-fp32"]
    assert found["none"] == found["selective"] == found["full"]
    assert found["none"] != found["without dropout"], "dropout changes nothing: nothing is shown"


@pytest.mark.parametrize("case", each("lora_export-{}", ["1-fp32", "0-bf16", "3-bf16"]))
def test_merged_weights_give_the_engine_s_logits_and_so_does_peft_with_the_adapters(measured, case):
    """To ``near`` of the largest logit: in bf16 the merged weights are rounded once more."""
    found, near = measured(2)[f"lora_export-{case}"], 2e-2 if "bf16" in case else 1e-5
    assert found["trained"] > 10 * near * found["largest"], "training hardly moved the logits: nothing is shown"
    assert max(found["merged"], found["by peft"]) <= near * found["largest"], found
    assert not {"q_proj", "down_proj"} & set(found["kept"]) and {"embed_tokens", "norm"} <= set(found["kept"])


def test_adapters_begin_with_the_outputs_of_the_model_and_one_seed_gives_one_start():
    ids = torch.arange(12)[None]
    plain, first, second, other = (build("llama").eval() for _ in range(4))
    state = torch.get_rng_state()
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        add_adapters(model, LORA, seed)
    assert torch.get_rng_state().equal(state), "training's random numbers would begin elsewhere"
    assert first(ids).logits.equal(plain(ids).logits), "step 0 is not the model that training began with"
    values = [[value for value in model.parameters() if value.requires_grad] for model in (first, second, other)]
    assert all(one.equal(two) for one, two in zip(*values[:2], strict=True))
    assert not all(one.equal(two) for one, two in zip(values[0], values[2], strict=True))
    line = describe_adapters(first, LORA)
    assert line.startswith("LoRA: ") and "rank 4, alpha 16, dropout 0.05, on q_proj, down_proj" in line


@dataclass
class Trained:
    """What an export asks of an engine: the adapters on the first process."""

    values: dict[str, torch.Tensor]
    unreached: tuple[str, ...] = ()
    world: World = field(default_factory=lambda: ALONE)

    def weights(self) -> dict[str, torch.Tensor]:
        return self.values


def test_an_export_is_a_plain_folder_with_the_adapters_beside_it(tiny_model, tmp_path):
    origin = Origin(tiny_model, "bfloat16", lora=LORA)
    model = origin.load_to_train(seed=5)
    values = {name: torch.randn_like(value) * 0.1 for name, value in model.named_parameters() if value.requires_grad}
    target = write_export(Trained(values), origin, tmp_path / "export")
    merged, before = load_model(target).state_dict(), origin.load().state_dict()
    assert merged.keys() == before.keys()
    changed = {name for name in merged if not merged[name].equal(before[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}
    name = "model.layers.3.mlp.down_proj"
    a, b = (values[f"{name}.lora_{factor}.default.weight"] for factor in "AB")
    wanted = before[f"{name}.weight"].double() + 4 * b.double() @ a.double()
    assert merged[f"{name}.weight"].equal(wanted.float().bfloat16()), "not rounded once, from the sum in fp32"
    stated = json.loads((target / "adapter" / "adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"], sorted(stated["target_modules"])) == (4, 16.0, ["down_proj", "q_proj"])
    beside = PeftModel.from_pretrained(origin.load(), target / "adapter").base_model.model.state_dict()
    assert all(beside[key].equal(value) for key, value in values.items()), "peft reads other adapters"
    assert {path.name for path in target.parent.iterdir()} == {"export"}, "scratch files are left"
