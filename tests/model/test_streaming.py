"""A model whose blocks are read one at a time, against the same folder loaded whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks
from pipeline.model.load import load_model
from pipeline.model.streaming import StreamedModel
from tests.families import BLOCKS, build

#: Tied and not, two rotaries, keys without the prefix of the modules' names, experts that are fused, buffers in blocks
#: (GPT-J's sines, DeepSeek's fp32 bias).
CASES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("gemma3", {}),
    ("gpt2", {}),
    ("mixtral", {}),
    ("gptj", {}),
    ("deepseek_v3", {}),
]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_every_block_is_what_loading_the_model_whole_gives(family, changes, tmp_path):
    build(family, **changes).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists(), "one file: shards are not tested"
    for dtype in ("bfloat16", "float32"):
        whole, streamed = load_model(tmp_path, dtype=dtype), StreamedModel(tmp_path, dtype=dtype)
        expected = find_blocks(whole)
        seen, used = set(), 0
        for index, block in enumerate(expected):
            with streamed.block(index) as loaded:
                for name, tensor in block.state_dict(keep_vars=True).items():
                    seen.add(f"{index}.{name}")
                    _same(loaded.state_dict(keep_vars=True)[name], tensor, f"{family} block {index} {name} in {dtype}")
                for name, tensor in block.named_buffers():
                    _same(loaded.get_buffer(name), tensor, f"{family} block {index} buffer {name} in {dtype}")
                used = max(used, sum(parameter.nbytes for parameter in loaded.parameters()))
            assert all(parameter.is_meta for parameter in streamed.blocks.parameters()), "a block stayed in memory"
        assert streamed.loads == [1] * BLOCKS
        assert max(streamed.block_bytes) >= used, "a block has more bytes than it was said to have"
        inside = {id(tensor) for tensor in (*expected.parameters(), *expected.buffers())}
        for name, tensor in (*whole.named_parameters(), *whole.named_buffers()):
            if id(tensor) not in inside:
                own = dict([*streamed.model.named_parameters(), *streamed.model.named_buffers()])
                _same(own[name], tensor, f"{family} {name} in {dtype}")
        head, table = streamed.model.get_output_embeddings(), streamed.model.get_input_embeddings()
        tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
        assert (head.weight is table.weight) == tied, f"{family}: head and embeddings"
    if family == "mixtral":
        keys = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        assert any("experts.0." in key for key in keys), "the file's experts are fused already: nothing was converted"


def _same(found, wanted, what):
    assert found.dtype == wanted.dtype and torch.equal(found, wanted), f"{what} differs"
    assert not isinstance(wanted, torch.nn.Parameter) or found.data_ptr() % 64 == 0, f"{what} off a cache line"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    build("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def changed(saved, tmp_path):
    """``changed(function)``: a copy of the model's folder whose dictionary of weights the function changed."""

    def change(function) -> Path:
        weights = load_file(saved / "model.safetensors")
        function(weights)
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
        return tmp_path

    return change


DOWN = "model.layers.4.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda weights: weights.pop(DOWN), rf"{DOWN} missing in its files \(model.safetensors\)"),
        (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight missing"),
        (lambda weights: weights.update({DOWN: torch.ones(3, 5)}), rf"model.safetensors: {DOWN} has shape \(3, 5\)"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(7)}), r"model.norm.weight has shape \(7,\)"),
        (lambda weights: weights.update({"model.layers.2.extra": torch.ones(1)}), "no place for model.layers.2.extra"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_block_is_read(changed, change, told):
    with pytest.raises(RegrowError, match=told):
        StreamedModel(changed(change), dtype="float32")


def test_a_missing_expert_is_named(tmp_path):
    build("mixtral").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if "layers.3." in name and name.endswith(("w1.weight", "w3.weight"))]:
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    streamed = StreamedModel(tmp_path, dtype="float32")
    with pytest.raises(RegrowError, match=r"layers\.3\.mlp\.experts\.gate_up_proj missing"), streamed.block(3):
        pass
    assert all(parameter.is_meta for parameter in streamed.blocks.parameters()), "half a block stayed"


def test_folders_that_cannot_be_streamed_are_refused_with_the_remedy(saved, tmp_path):
    weights = (saved / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RegrowError, match=r"from safetensors alone.*save_pretrained"):
        StreamedModel(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(RegrowError, match=r"model.safetensors: damaged"):
        StreamedModel(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    streamed = StreamedModel(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(RegrowError, match=r"damaged"), streamed.block(5):
        pass
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {DOWN: "two.safetensors"}}))
    with pytest.raises(RegrowError, match=r"two\.safetensors: named by .* and not there"):
        StreamedModel(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(RegrowError, match="quantised"):
        StreamedModel(tmp_path)
