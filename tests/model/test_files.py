"""Files of weights that are not whole, not there, or no numbers: refused by name before anything is loaded."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.errors import RegrowError
from pipeline.model.files import not_finite, read_header, require_finite_files, require_whole
from pipeline.model.load import load_model


@pytest.fixture
def single(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model: one file of weights."""
    return Path(shutil.copytree(tiny_model, tmp_path / "single"))


@pytest.fixture
def parts(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model in several files with an index."""
    folder = tmp_path / "parts"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(RegrowError) as error:
        require_whole(folder)
    return str(error.value)


def change_index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_whole_files_pass_and_their_headers_name_every_tensor(single, parts):
    assert [path.name for path in require_whole(single)] == ["model.safetensors"]
    whole = require_whole(parts)
    assert whole == sorted(parts.glob("*.safetensors"))
    names = {name for path in whole for name in read_header(path)}
    assert names == set(load_file(single / "model.safetensors"))
    require_finite_files(whole)


@pytest.mark.parametrize("kept", [0, 5, 8, 900, -1])
def test_a_file_that_was_cut_off_is_named(single, kept):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: " in refusal(single) and "cut off" in refusal(single)


def test_bytes_behind_the_end_and_another_format_are_named(single):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    assert "cut off or damaged" in refusal(single)
    path.write_bytes(struct.pack("<Q", 9) + b"not json!" + b"0" * 99)
    assert "not a safetensors file" in refusal(single)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "a pointer of Git LFS" in refusal(single) and "git lfs pull" in refusal(single)
    path.unlink()
    assert "no weights" in refusal(single)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        None,
        {"dtype": "F32", "shape": [1]},
        *({"dtype": "F32", "shape": [1], "data_offsets": odd} for odd in ("ab", 5, [0], ["a", "b"], [0.0, 4.0], {})),
    ],
)
def test_an_entry_of_a_header_that_has_no_place_is_named(single, entry):
    path = single / "model.safetensors"
    old = path.read_bytes()
    length = int.from_bytes(old[:8], "little")
    header = json.dumps({**json.loads(old[8 : 8 + length]), "odd.weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + old[8 + length :])
    assert f"{path}: its header does not say where the bytes of odd.weight are" in refusal(single)


def test_parts_and_their_index_must_agree(parts):
    first, second = sorted(path.name for path in parts.glob("*.safetensors"))[:2]
    name = next(iter(read_header(parts / first)))
    change_index(parts, lambda names: names.update({name: second}))
    assert f"says that {name} is in {second}, which does not hold it" in refusal(parts)
    change_index(parts, lambda names: names.update({name: first}))
    require_whole(parts)
    (parts / second).rename(parts / "kept")
    assert f"{parts / second}: named by model.safetensors.index.json and not there" in refusal(parts)
    (parts / "model.safetensors.index.json").unlink()
    assert "neither a single file of weights nor an index" in refusal(parts)


def test_a_cut_off_bin_is_named_and_an_old_one_passes(single):
    weights = load_file(single / "model.safetensors")
    (single / "model.safetensors").unlink()
    path = single / "pytorch_model.bin"
    torch.save(weights, path)
    assert require_whole(single) == [path]
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: cut off" in refusal(single)
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert require_whole(single) == [path]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_to_be_fetched_again(parts, text):
    (parts / "model.safetensors.index.json").write_text(text)
    said = refusal(parts)
    assert "index.json: " in said and said.endswith("fetch the model again"), said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_names_its_tensor(single, value):
    path, name = single / "model.safetensors", "model.layers.5.mlp.up_proj.weight"
    weights = load_file(path)
    weights[name][3, 7] = value
    save_file(weights, path, metadata={"format": "pt"})
    for look in (lambda: require_finite_files([path]), lambda: load_model(single)):
        with pytest.raises(RegrowError, match=r"not finite") as error:
            look()
        assert name in str(error.value)
        # No precision mends it.
        assert "float" not in str(error.value)


def test_floats_of_eight_bits_and_whole_numbers_are_looked_at_too():
    eight = torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn)
    broken = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    there = [("a", eight), ("b", torch.tensor([1, 2])), ("c", torch.empty(2, device="meta"))]
    assert not_finite(there) is None
    assert not_finite([*there, ("d", broken)]) == "d"
