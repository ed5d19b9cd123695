"""Model folders: what is whole loads, what transformers would complete with random weights is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.data.tokens import load_tokenizer
from pipeline.errors import RegrowError
from pipeline.model.architecture import own_code, tokenizer_code
from pipeline.model.load import (
    attention_kernel,
    copy_companions,
    load_model,
    model_files,
    resolve_model,
    save_model,
    save_whole,
)
from pipeline.model.streaming import StreamedModel
from tests.families import build
from tests.own_code import write_own_model, write_own_tokenizer


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model that may be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_whole_folder_loads_and_is_saved_with_its_companions(tiny_model, tmp_path):
    model = load_model(tiny_model)
    assert (model.dtype, model.training, len(model.model.layers)) == (torch.bfloat16, False, 8)
    assert load_model(tiny_model, dtype="float32").dtype == torch.float32
    (tmp_path / "dense").mkdir()
    for path in tiny_model.iterdir():
        shutil.copy(path, tmp_path / "dense")
    (tmp_path / "dense" / "chat_template.jinja").write_text("{{ messages }}")
    save_model(model, tmp_path / "saved", companions_from=tmp_path / "dense")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    } <= names, f"the saved folder has only {sorted(names)}"
    again = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_file(tiny_model / "model.safetensors").items())


def test_missing_left_over_and_misshapen_weights_are_refused(folder, tiny_model, capfd):
    def refused(words):
        with pytest.raises(RegrowError, match=words):
            load_model(folder)
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)

    change_weights(folder, lambda weights: weights.pop("model.layers.3.mlp.up_proj.weight"))
    refused(r"weights and config do not fit \(missing keys: model\.layers\.3\.mlp\.up_proj\.weight\)")
    change_config(folder, num_hidden_layers=7)
    refused(r"do not fit \(unexpected keys: model\.layers\.7\.")
    change_config(folder, num_hidden_layers=9)
    refused(r"do not fit \(missing keys: model\.layers\.8\.")
    change_weights(folder, lambda w: w.update({"model.norm.weight": torch.ones(65, dtype=torch.bfloat16)}))
    refused(r"do not fit \(mismatched keys: model\.norm\.weight has shape \[65\], and \[64\] is wanted\)$")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(r"model\.safetensors: damaged or unreadable")
    load_model(folder)
    assert capfd.readouterr().err == "", "transformers printed its own report"


def test_an_expert_that_does_not_fit_is_named_in_a_line(tmp_path, capfd):
    """transformers makes one tensor of all experts', and of what it cannot make says only that a report does."""
    build("mixtral").to(torch.bfloat16).save_pretrained(tmp_path)
    name = "model.layers.2.block_sparse_moe.experts.1.w1.weight"
    change_weights(tmp_path, lambda weights: weights.update({name: torch.ones(65, 32, dtype=torch.bfloat16)}))
    capfd.readouterr()
    with pytest.raises(RegrowError, match=r"layers\.2\.mlp\.experts\.gate_up_proj is made of 16,416 values, and"):
        load_model(tmp_path)
    assert "REPORT" not in capfd.readouterr().err


def test_a_folder_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    model, target = load_model(folder), tmp_path / "target"
    save_whole(model, target, folder, "the model")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= before.keys()
    monkeypatch.setattr("pipeline.model.load.copy_companions", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with torch.no_grad():
        next(model.parameters()).zero_()
    with pytest.raises(OSError, match="full"):
        save_whole(model, target, folder, "the model")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    monkeypatch.undo()
    save_whole(model, target, folder, "the model")
    assert (target / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert not list(tmp_path.glob(".target*")), "what was written beside is still there"


def test_what_old_llama_checkpoints_carry_along_is_no_harm(folder):
    """Vicuna's files hold rotary frequencies, which are computed now and not read."""
    change_weights(folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    load_model(folder)


def test_a_path_that_is_no_model_is_refused(folder, tmp_path):
    assert resolve_model(str(folder)) == folder
    assert {path.name for path in model_files(folder)} >= {"config.json", "model.safetensors", "tokenizer.json"}
    with pytest.raises(RegrowError, match=r"no such folder, and not the name of a model on the hub"):
        resolve_model(str(tmp_path / "gone"))
    with pytest.raises(RegrowError, match="no such folder"):
        resolve_model("./gone/model")
    (folder / "model.safetensors").rename(folder / "weights.h5")
    with pytest.raises(RegrowError, match="no weights in"):
        resolve_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(RegrowError, match=r"no config\.json"):
        resolve_model(str(folder))


def test_a_name_of_the_hub_is_fetched_and_messages_name_no_key_of_a_config(tiny_model, monkeypatch):
    asked = []

    def deliver(name, revision, allow_patterns):
        asked.append((name, revision))
        if name == "owner/gone":
            raise OSError("no network")
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", deliver)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name, revision: ["model.safetensors"])
    assert len(load_model("owner/name", revision="v2").model.layers) == 8
    assert asked == [("owner/name", "v2")]
    for name, words in (
        ("owner/gone", r"^model 'owner/gone': .* \(OSError: no network\)"),
        ("gone", "^model 'gone': no such"),
    ):
        with pytest.raises(RegrowError, match=words):
            load_model(name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_files_dtype_is_kept_unless_another_is_asked_for(folder, dtype):
    """Whatever the config says: it is what most values are in."""
    change_weights(folder, lambda weights: weights.update({name: each.to(dtype) for name, each in weights.items()}))
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(64, dtype=torch.bfloat16)}))
    change_config(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in load_model(folder).parameters()} == {dtype}
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    for wrong in ("bf16", "int8", torch.int64):
        with pytest.raises(
            RegrowError, match=r"^dtype \w+: weights are loaded in one of float64, float32, bfloat16, float16"
        ):
            load_model(folder, dtype=wrong)


@pytest.mark.parametrize("device", ["cuda:63", "xpu", "gpu"])
def test_a_device_that_is_not_there_is_refused(tiny_model, device):
    with pytest.raises(RegrowError, match=rf"^device {device}: not to be had here \(.*\); cpu always is$"):
        load_model(tiny_model, device=device)


def test_the_attention_kernel_is_the_asked_one_or_is_refused(tiny_model):
    cpu = torch.device("cpu")
    assert attention_kernel("eager", cpu) == "eager"
    with pytest.raises(RegrowError, match=r"flash_attention_2: not installed here, or no GPU"):
        attention_kernel("flash_attention_2", cpu)
    assert load_model(tiny_model, attention="eager").config._attn_implementation == "eager"
    assert load_model(tiny_model).config._attn_implementation == "sdpa"


def test_a_model_with_torch_weights_alone_loads_the_same(tiny_model, folder):
    dense = load_model(tiny_model)
    (folder / "model.safetensors").unlink()
    torch.save(dense.state_dict(), folder / "pytorch_model.bin")
    old = load_model(resolve_model(str(folder)))
    differing = [name for name, value in dense.state_dict().items() if not torch.equal(value, old.state_dict()[name])]
    assert not differing, f"read from pytorch_model.bin these weights are others: {differing}"


def test_logits_do_not_depend_on_where_in_its_file_a_weight_stands(folder):
    """Weights are mapped from the file: a header of another length moves them off the lines that kernels like."""
    ids = torch.arange(12).view(1, 12)
    logits = []
    for length in (1, 9, 21):
        weights = load_file(folder / "model.safetensors")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt", "note": "x" * length})
        model = load_model(folder, dtype="bfloat16")
        assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())
        with torch.no_grad():
            logits.append(model(ids).logits)
    assert logits[0].equal(logits[1]) and logits[0].equal(logits[2])


def test_a_head_that_is_not_the_embeddings_is_saved_as_one(tiny_model, folder, tmp_path):
    """The config says tied, and the file holds another head: transformers keeps both, and so must whoever reads it."""
    change_config(folder, tie_word_embeddings=True)
    model = load_model(folder)
    assert model.lm_head.weight is not model.get_input_embeddings().weight and not model.config.tie_word_embeddings
    save_model(model, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["tie_word_embeddings"] is False, "a reader that trusts the config would drop the head"
    assert load_file(tmp_path / "saved" / "model.safetensors")["lm_head.weight"].equal(
        load_file(tiny_model / "model.safetensors")["lm_head.weight"]
    )
    ids = torch.arange(12).view(1, 12)
    streamed = StreamedModel(folder).model
    assert streamed.lm_head.weight.equal(model.lm_head.weight), "the block-major loader has another head"
    # The same head twice is one that is tied.
    change_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    tied = load_model(folder)
    assert tied.lm_head.weight is tied.get_input_embeddings().weight and tied.config.tie_word_embeddings
    change_weights(folder, lambda w: w.pop("lm_head.weight"))
    with torch.no_grad():
        assert load_model(folder)(ids).logits.equal(tied(ids).logits)


def test_a_tokenizer_that_is_code_of_its_own_goes_where_its_model_goes(tiny_model, tmp_path, own_modules):
    dense = Path(shutil.copytree(tiny_model, tmp_path / "dense"))
    write_own_tokenizer(dense)
    (dense / "words.tiktoken").write_text("YQ== 0\n")
    assert tokenizer_code(dense) == ["own_tokens.py"] and own_code(dense) == tokenizer_code(tiny_model) == []
    assert dense / "words.tiktoken" in model_files(dense), "a changed vocabulary would go unnoticed"
    for source, target in (("dense", "pruned"), ("pruned", "export")):
        (tmp_path / target).mkdir()
        copy_companions(tmp_path / source, tmp_path / target)
        names = {path.name for path in (tmp_path / target).iterdir()}
        assert {"own_tokens.py", "own_setting.py", "words.tiktoken", "tokenizer.json"} <= names, names
        shutil.copy(dense / "config.json", tmp_path / target)
        tokenizer = load_tokenizer(tmp_path / target, trust_remote_code=True)
        assert type(tokenizer).__name__ == "OwnTokenizer" and tokenizer("river")["input_ids"]


def test_buffers_that_a_model_s_own_code_leaves_to_chance_are_refused(tiny_model, tmp_path, own_modules):
    """transformers loads a model without running its constructor on a device, and fills buffers by _init_weights."""
    more = "self.register_buffer('factor', self.lm_head.weight.new_full((9,), 7.0), persistent=False)"
    own = write_own_model(tiny_model, tmp_path / "own", more=more)
    with pytest.raises(RegrowError, match=r"OwnForCausalLM: its buffer factor is in no file"):
        load_model(own, trust_remote_code=True)
    assert load_model(write_own_model(tiny_model, tmp_path / "kept"), trust_remote_code=True).config.auto_map
