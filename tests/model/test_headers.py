"""What weight files hold, by their headers: every tensor, what it becomes, and what a model has less of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks
from pipeline.model.describe import describe_folder
from pipeline.model.fit import require_fit
from pipeline.model.headers import read_headers, shortfall
from pipeline.model.load import load_model
from pipeline.model.streaming import StreamedModel
from pipeline.model.surgery import prune_folder
from tests.families import build


def saved(model: torch.nn.Module, folder: Path) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_what_the_run_s_dtype_narrows_is_named(form, tmp_path):
    """A Mixtral in bf16 whose routers are in fp32, under the names that its checkpoints have."""
    dense = saved(build("mixtral"), tmp_path / "dense")
    weights = load_file(dense / "model.safetensors")
    routers = sorted(name for name in weights if name.endswith("gate.weight"))
    weights |= {name: weights[name].float() * 1.0001 for name in routers}
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    if form == "bin":
        (dense / "model.safetensors").unlink()
        torch.save(weights, dense / "pytorch_model.bin")
    lines: list[str] = []
    record = prune_folder(dense, tmp_path / "model", [0, 3], {}, dtype="bfloat16", say=lines.append)
    assert len(routers) == 6 and record["narrowed"] == dict.fromkeys(routers, "float32")
    assert lines[0] == (
        f"model.dtype bfloat16 narrows 6 of the {len(weights)} tensors in dense: {', '.join(routers[:3])}, ..."
    )
    assert shortfall(load_model(dense, dtype="float32"), dense).narrowed == {}, "fp32 holds all of it"
    half = shortfall(load_model(dense, dtype="float16"), dense).narrowed
    assert set(half.values()) == {torch.bfloat16, torch.float32}, "fp16 cannot hold every number of bf16"


def test_what_the_model_has_no_place_for_is_named(tmp_path):
    """DeepSeek V3's files hold a head for further tokens, which transformers leaves out."""
    dense = saved(build("deepseek_v3"), tmp_path / "dense")
    weights = load_file(dense / "model.safetensors")
    extra = {
        "model.layers.61.eh_proj.weight": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    save_file(weights | extra, dense / "model.safetensors", metadata={"format": "pt"})
    lines: list[str] = []
    record = prune_folder(dense, tmp_path / "model", [0, 4], {}, dtype="bfloat16", say=lines.append)
    assert record["left_out"] == ["model.layers.61.eh_proj.weight"], "a table that is computed now is not missed"
    assert lines[0].startswith("the text model leaves out 1 of the ")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("form", ["safetensors", "parts", "bin"])
def test_every_tensor_is_named_with_what_it_becomes(family, form, tmp_path):
    """Shape and dtype as in the file, and the name that the module has: without its prefix, or fused with others."""
    model = build(family).to(torch.bfloat16)
    model.save_pretrained(tmp_path, **({"max_shard_size": "50KB"} if form == "parts" else {}))
    files = sorted(tmp_path.glob("*.safetensors"))
    weights = {key: value for file in files for key, value in load_file(file).items()}
    if form == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
        files[0].unlink()
        files = [tmp_path / "pytorch_model.bin"]
    assert (len(files) > 1) == (form == "parts")
    entries = read_headers(model, files)
    assert entries.keys() == weights.keys()
    own = model.state_dict()
    for key, entry in entries.items():
        assert (entry.shape, entry.dtype) == (tuple(weights[key].shape), weights[key].dtype), key
        assert entry.target in own, f"{key} becomes {entry.target}, which the model has not"
        assert entry.converted or tuple(own[entry.target].shape) == entry.shape, f"{key} does not fit {entry.target}"
        assert key in {str(name) for name in read_keys(entry.file)}, f"{key} does not stand in {entry.file.name}"
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert {entry.target for entry in entries.values()} == own.keys() - tied, "a parameter comes from no file"
    assert any(entry.converted for entry in entries.values()) == (family in ("mixtral", "deepseek_v3"))


def read_keys(file: Path) -> list[str]:
    return list(torch.load(file) if file.suffix == ".bin" else load_file(file))


def test_reading_headers_reads_no_values(tmp_path):
    """By the kernel's count of the bytes that this process has read."""
    build("llama", hidden_size=128).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with torch.device("meta"):
        hollow = LlamaForCausalLM(build("llama", hidden_size=128).config)
    costs = []
    for _ in range(2):  # the first time, modules are read too
        before = bytes_read()
        entries = read_headers(hollow, [file])
        costs.append(bytes_read() - before)
    assert len(entries) == len(hollow.state_dict())
    assert costs[1] < file.stat().st_size / 10, f"{costs[1]} bytes of {file.stat().st_size} were read"


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.safetensors", b"\0" * 20, "damaged or unreadable"),
        ("pytorch_model.bin", b"no pickle", "damaged or unreadable"),
        ("pytorch_model.bin", {"step": 3}, "'step' in it is no tensor: not the weights of a Hugging Face model"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path, name, content, told):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(RegrowError, match=rf"{name}: {told}") as error:
        read_headers(build("llama"), [tmp_path / name])
    assert "\n" not in str(error.value)


def test_whole_numbers_have_no_dtype_that_could_be_narrowed(tmp_path):
    model = build("llama")
    weights = {**model.state_dict(), "model.norm.weight": torch.ones(32, dtype=torch.int64)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    entry = read_headers(model, [tmp_path / "model.safetensors"])["model.norm.weight"]
    assert entry.dtype is None and shortfall(model, tmp_path).narrowed == {}


#: Where the attention of a block stands in the files of families that once saved their masks.
OLD = {"gpt2": "transformer.h.{}.attn", "gpt_neo": "transformer.h.{}.attn.attention", "gptj": "transformer.h.{}.attn"}


@pytest.mark.parametrize("family", OLD)
def test_masks_that_old_files_hold_are_passed_over(family, tmp_path):
    """By every way of reading the files; a tensor of another name is still left over."""
    dense = saved(build(family), tmp_path)
    weights, count = load_file(dense / "model.safetensors"), len(find_blocks(build(family)))
    for place in (OLD[family].format(index) for index in range(count)):
        weights |= {
            f"{place}.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
            f"{place}.masked_bias": torch.tensor(-1e4),
        }
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    whole, streamed = load_model(dense), StreamedModel(dense)
    require_fit(describe_folder(dense), dense, [dense / "model.safetensors"])
    assert shortfall(whole, dense).left_out == []
    for index, block in enumerate(find_blocks(whole)):
        with streamed.block(index) as loaded:
            assert all(value.equal(loaded.get_parameter(name)) for name, value in block.named_parameters())
    place = OLD[family].format(0)
    save_file(weights | {f"{place}.odd_bias": torch.ones(2)}, dense / "model.safetensors", metadata={"format": "pt"})
    looks = (
        load_model,
        StreamedModel,
        lambda path: require_fit(describe_folder(path), path, [path / "model.safetensors"]),
    )
    for look in looks:
        with pytest.raises(RegrowError, match=r"odd_bias"):
            look(dense)
