"""The prune stage: every way of saying what goes, a folder that plain transformers loads, and the self-test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.launch import Place
from pipeline.model.equivalence import TOLERANCE, compare, difference, full_logits, probe_ids
from pipeline.model.load import load_model
from pipeline.run import Run
from pipeline.stages import data, evaluate, prune
from pipeline.world import World
from tests.own_code import write_own_model
from tests.records import stage_record

ORDER = [0, 5, 7, 3, 2, 4, 1, 6]


@pytest.fixture
def pruned(tiny_config, tmp_path):
    """``pruned("prune.remove=3")`` carries the stage out on an order that was scored before; (record, run)."""

    def carry_out(*overrides: str) -> tuple[dict, Run]:
        config = load_config(tiny_config, overrides)
        run = Run(tmp_path / "runs" / "tiny")
        write_json(run.stage("score") / "scores.json", {"criteria": {"ppl": {"order": ORDER}}})
        prune.work(config, run, World.join(Place()), lambda line: None)
        return read_json(run.stage("prune") / "prune.json"), run

    return carry_out


def test_the_model_is_a_plain_folder_and_the_self_test_is_recorded(pruned, tiny_model):
    record, run = pruned("prune.remove=3")
    assert (record["criterion"], record["removed"], record["kept"]) == ("ppl", [2, 3, 5], [0, 1, 4, 6, 7])
    original = load_model(tiny_model)
    sizes = [sum(p.numel() for p in block.parameters()) for block in original.model.layers]
    total = original.num_parameters()
    assert record["parameters"] == {"dense": total, "pruned": total - sum(sizes[:3])}
    folder = run.stage("prune") / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 5 and config["architectures"] == ["LlamaForCausalLM"]
    assert config["regrow"] == {"dense_blocks": 8, "kept_blocks": [0, 1, 4, 6, 7], "removed_blocks": [2, 3, 5]}
    assert "auto_map" not in config, "the folder asks for remote code"
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= {p.name for p in folder.iterdir()}
    dense, weights = (load_file(path / "model.safetensors") for path in (tiny_model, folder))
    for number, original in enumerate([0, 1, 4, 6, 7]):
        for name in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"):
            assert weights[f"model.layers.{number}.{name}.weight"].equal(
                dense[f"model.layers.{original}.{name}.weight"]
            ), f"block {number} is not the dense model's block {original}"
    assert weights["lm_head.weight"].dtype == torch.bfloat16
    checks = record["self_test"]["checks"]
    assert len(checks) == 5 and all(check["difference"] <= check["tolerance"] for check in checks)
    assert [check["tolerance"] for check in checks].count(0) == 2, "reloading is compared bit for bit"
    assert not (run.stage("prune") / ".model.new").exists()
    record, _ = pruned("prune.blocks=[0]")
    assert len(record["self_test"]["checks"]) == 5 and record["criterion"] is None


def test_a_second_pruning_keeps_the_first_dense_indices(pruned, tmp_path):
    _, run = pruned("prune.remove=2")
    shutil.copytree(run.stage("prune") / "model", tmp_path / "once")
    record, run = pruned(f"model.path={tmp_path}/once", "prune.blocks=[3]")
    config = read_json(run.stage("prune") / "model" / "config.json")
    # 3 and 5 went first: block 3 of that model is block 4 of the dense one.
    assert config["regrow"] == {"dense_blocks": 8, "kept_blocks": [0, 1, 2, 6, 7], "removed_blocks": [3, 4, 5]}
    assert record["removed"] == [3]


BARE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("The city of", return_tensors="pt")
with_cache, without = (model.generate(**prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=use)
                       for use in (True, False))
assert with_cache.equal(without), "the cache changes what is generated"
assert with_cache.shape[1] == prompt["input_ids"].shape[1] + 12
ids = torch.randint(0, 1000, (2, 24), generator=torch.Generator().manual_seed(0))
torch.save(model(ids, use_cache=False).logits.detach(), sys.argv[2])
assert "pipeline" not in sys.modules
"""


def test_a_bare_python_loads_it_and_generates_with_a_cache(pruned, tmp_path):
    _, run = pruned("prune.remove=3")
    folder = run.stage("prune") / "model"
    done = subprocess.run(
        [sys.executable, "-I", "-c", BARE, folder, tmp_path / "logits"],
        text=True,
        capture_output=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours = full_logits(load_model(folder, dtype="float32"), probe_ids(1000))
    compare("bare Python and ours", torch.load(tmp_path / "logits"), ours, TOLERANCE)


def save(model, tiny_model: Path, folder: Path) -> Path:
    """A model's folder with the tiny tokenizer."""
    model.save_pretrained(folder)
    for path in tiny_model.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def test_the_self_test_ends_the_stage_when_the_models_differ(pruned, tiny_model, tmp_path, own_modules):
    """Code that scales each block by its number: renumbered blocks compute something else, and no attribute tells."""
    own = write_own_model(tiny_model, tmp_path / "own", scale="(1 + module.layer_idx)")
    with pytest.raises(RegrowError, match=r"self-test of pruning: blocks skipped and blocks removed differ by"):
        pruned(f"model.path={own}", "model.trust_remote_code=true", "prune.remove=3")
    assert not (tmp_path / "runs" / "tiny" / "prune" / "prune.json").exists()


def test_a_model_of_own_code_is_pruned_and_evaluated_where_the_config_allows_its_code(
    pruned, tiny_model, tiny_config, tmp_path, own_modules
):
    own = write_own_model(tiny_model, tmp_path / "own")
    allowed = [f"model.path={own}", "model.trust_remote_code=true"]
    refusal = r"own/config\.json: this model is code of its own \(own_code\.py\).*say trust_remote_code=True"
    with pytest.raises(RegrowError, match=refusal):
        pruned(allowed[0], "prune.remove=2")
    record, run = pruned(*allowed, "prune.remove=2")
    assert len(record["self_test"]["checks"]) == 5
    folder = run.stage("prune") / "model"
    with pytest.raises(RegrowError, match=r"say trust_remote_code=True"):
        load_model(folder)
    ids = probe_ids(1000)
    plain = full_logits(load_model(tiny_model), ids)
    assert difference(plain, full_logits(load_model(own, trust_remote_code=True), ids)) > 1e-3, "the code did not run"

    # Stage evaluate loads the pruned and the regrown folder, which hold the code too.
    config = load_config(tiny_config, allowed)
    data.work(config, run, World.join(Place()), lambda line: None)
    write_json(run.stage("train") / "stage.json", stage_record(result={"export": "prune/model"}))
    found = evaluate.work(config, run, World.join(Place()), lambda line: None)
    assert found["regrown"] == found["pruned"] != found["dense"]


def test_blocks_that_know_their_place_are_refused(pruned, tiny_model, tmp_path):
    """GPT-2 whose attention is scaled by the block's number: renumbered blocks would compute something else."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=1000,
            n_embd=32,
            n_layer=8,
            n_head=4,
            n_positions=64,
            scale_attn_by_inverse_layer_idx=True,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    with pytest.raises(RegrowError, match="scaling"):
        pruned(f"model.path={save(model, tiny_model, tmp_path / 'gpt2')}", "prune.remove=3")
    assert not (tmp_path / "runs" / "tiny" / "prune" / "prune.json").exists()


def test_what_the_stage_reads_is_in_its_inputs(tiny_config, tiny_model, tmp_path):
    order = tmp_path / "order.csv"
    order.write_text("0,1,2,3,4,5,6,7\n")
    run = Run(tmp_path / "runs" / "tiny")
    config = load_config(tiny_config, [f"prune.blocks={order}", "prune.remove=2"])
    first = prune.inputs(config, run)
    assert {"model/model.safetensors", "model/config.json", str(order)} <= set(first)
    order.write_text("7,6,5,4,3,2,1,0\n\n")
    assert prune.inputs(config, run)[str(order)] != first[str(order)], "a changed order would go unnoticed"
    Path(order).unlink()
    with pytest.raises(RegrowError, match=r"order\.csv is not a file"):
        prune.inputs(config, run)
