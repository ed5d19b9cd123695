"""Weights and config that do not fit are told by the files' headers; what transformers loads is never refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import RegrowError
from pipeline.model.architecture import read_config
from pipeline.model.costs import meta_model
from pipeline.model.files import require_whole
from pipeline.model.fit import require_fit
from pipeline.model.load import load_model
from tests.families import FAMILIES, MULTIMODAL, OTHERS, build, build_multimodal

Weights = dict[str, torch.Tensor]


def fit(folder: Path) -> None:
    """The look at a folder that a run begins with."""
    require_fit(meta_model(read_config(folder)), folder, require_whole(folder))


def refusal(folder: Path) -> str:
    with pytest.raises(RegrowError) as error:
        fit(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(folder: Path, weights: Weights, binary: bool = False) -> None:
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        path.unlink()
    if binary:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


CASES = {
    **{family: lambda family=family: build(family) for family in {**FAMILIES, **OTHERS}},
    **{f"{family}, wrapper": lambda family=family: build_multimodal(family) for family in MULTIMODAL},
    "mixtral, tied": lambda: build("mixtral", tie_word_embeddings=True),
}


@pytest.mark.parametrize("name", CASES)
def test_a_family_s_files_fit_and_not_without_or_with_another_tensor(name, tmp_path):
    """In parts, in one file and as torch's .bin; then tensors at even places are taken away, and grow by one."""
    model = CASES[name]().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists(), "one file: parts are not tested"
    fit(tmp_path)
    weights = {key: value for path in tmp_path.glob("*.safetensors") for key, value in load_file(path).items()}
    (tmp_path / "model.safetensors.index.json").unlink()
    for binary in (False, True):
        write(tmp_path, weights, binary)
        fit(tmp_path)
    for key in sorted(weights)[:: max(1, len(weights) // 4)]:
        write(tmp_path, {other: value for other, value in weights.items() if other != key})
        said = refusal(tmp_path)
        assert "is missing" in said or "is made of" in said, f"without {key}: {said}"
        write(tmp_path, {**weights, key: torch.zeros([size + 1 for size in weights[key].shape])})
        said = refusal(tmp_path)
        assert f"{key} has shape" in said or "is made of" in said, f"with a larger {key}: {said}"


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key.replace(old, new): value for key, value in weights.items()}


def with_more(pattern: str, value: torch.Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {pattern.format(index): value.clone() for index in range(6)}


#: What checkpoints of the hub have: (family, changes of its config, what is done to its weights, whether they load).
FOUND: dict[str, tuple[str, dict[str, Any], Callable[[Weights], Weights], bool]] = {
    "names without the prefix": ("gpt2", {}, renamed("transformer.", ""), True),
    "names of the decoder alone": ("opt", {}, renamed("model.", ""), True),
    "masks of old files": ("gpt2", {}, with_more("transformer.h.{}.attn.bias", torch.ones(1, 1, 64, 64)), True),
    "rotary tables": ("llama", {}, with_more("model.layers.{}.self_attn.rotary_emb.inv_freq", torch.ones(4)), True),
    "masks of NeoX": ("neox", {}, with_more("gpt_neox.layers.{}.attention.masked_bias", torch.tensor(-1e9)), True),
    "layers that predict further": (
        "deepseek_v3",
        {},
        lambda weights: weights | {"model.layers.61.eh_proj.weight": torch.ones(3)},
        True,
    ),
    "the head alone of a tied pair": (
        "llama",
        {"tie_word_embeddings": True},
        renamed("model.embed_tokens", "lm_head"),
        True,
    ),
    "both of a tied pair, and they differ": (
        "llama",
        {"tie_word_embeddings": True},
        lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1},
        True,
    ),
    "another precision": ("llama", {}, lambda weights: {key: value.double() for key, value in weights.items()}, True),
    "no head": (
        "llama",
        {},
        lambda weights: {key: value for key, value in weights.items() if key != "lm_head.weight"},
        False,
    ),
    "another model's tensor": ("llama", {}, lambda weights: weights | {"extra.weight": torch.ones(4)}, False),
    "names of a release long ago": ("gpt2", {}, renamed("ln_1.weight", "ln_1.gamma"), False),
}


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", FOUND)
def test_what_fits_is_what_loads(name, binary, tmp_path):
    family, changes, change, loads = FOUND[name]
    build(family, **changes).to(torch.bfloat16).save_pretrained(tmp_path)
    write(tmp_path, change(load_file(tmp_path / "model.safetensors")), binary)
    if loads:
        fit(tmp_path)
        load_model(tmp_path)
        return
    refusal(tmp_path)
    with pytest.raises(RegrowError, match="do not fit"):
        load_model(tmp_path)


def test_wrappers_of_an_earlier_layout_fit(tmp_path):
    build_multimodal("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    earlier = {"model.language_model.": "language_model.model.", "model.vision": "vision", "model.multi": "multi"}
    for old, new in earlier.items():
        weights = renamed(old, new)(weights)
    write(tmp_path, weights)
    fit(tmp_path)
    load_model(tmp_path)


@pytest.fixture
def llama(tmp_path: Path) -> Weights:
    """The weights of a small Llama, whose folder is tmp_path."""
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    return load_file(tmp_path / "model.safetensors")


def test_the_first_three_that_are_wrong_are_named_and_the_others_counted(llama, tmp_path):
    gone = [key for key in llama if "layers.5." in key]
    kept = {key: value for key, value in llama.items() if key not in gone}
    write(tmp_path, kept | {"model.norm.weight": torch.ones(33)})
    said = refusal(tmp_path)
    first = "model.norm.weight has shape [33], and [32] is wanted; model.layers.5.input_layernorm.weight is missing"
    assert first in said, said
    assert said.count(" is missing") == 2 and f"(and {len(gone) - 2} more)" in said, said


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_weights_that_are_quantised_without_a_word_are_refused(llama, tmp_path, dtype, binary):
    name = "model.layers.1.mlp.up_proj.weight"
    write(tmp_path, llama | {name: llama[name].to(dtype)}, binary)
    said = refusal(tmp_path)
    assert f"{name} is quantised" in said and "save it dequantised first" in said, said


def test_a_pickle_is_read_as_far_as_it_tells_without_its_values(llama, tmp_path):
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save({"model": llama, "step": 7}, path)
    assert f"{path}: 'model' in it is no tensor" in refusal(tmp_path)
    torch.save({"a": Path("/")}, path)
    assert f"{path}: damaged or unreadable" in refusal(tmp_path)
    # Older than the zip: it would have to be read whole.
    torch.save({}, path, _use_new_zipfile_serialization=False)
    fit(tmp_path)
