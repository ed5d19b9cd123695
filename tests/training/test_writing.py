"""Files of tensors written piece by piece: what safetensors reads, the same from live tensors and from a copy."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.files import hash_file
from pipeline.training import writing
from pipeline.training.writing import Staged, header, in_order, size_of, values, write


@pytest.fixture
def tensors():
    """Several dtypes, a scalar, an empty one, one that does not lie in order, and one of several pieces."""
    torch.manual_seed(0)
    return {
        "b": torch.randn(3, 5),
        "a": torch.randn(1000),
        "narrow": torch.randn(7).bfloat16(),
        "count": torch.tensor(3, dtype=torch.int64),
        "odd": torch.arange(5, dtype=torch.uint8),
        "turned": torch.randn(4, 6).t(),
        "none": torch.empty(0),
    }


def test_safetensors_reads_what_was_written(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PIECE", 64)
    entry = write(tmp_path / "ours", chain([header(tensors, {"about": "x"})], values(tensors)))
    with safe_open(tmp_path / "ours", "pt") as found:
        assert found.metadata() == {"about": "x"}
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    assert entry == {"bytes": (tmp_path / "ours").stat().st_size, "sha256": hash_file(tmp_path / "ours")}


def test_a_copy_gives_the_same_bytes_and_does_not_move_with_the_tensors(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PIECE", 64)
    before = b"".join(values(tensors))
    staged = Staged(tensors)
    staged.fill(tensors)
    tensors["a"].zero_()
    assert b"".join(staged.values()) == before
    staged.fill(tensors)
    assert b"".join(staged.values()) == b"".join(values(tensors)) != before
    assert len(before) == size_of(tensors)


def test_every_tensor_begins_at_a_multiple_of_its_size(tensors):
    begin = 0
    for name, value in in_order(tensors):
        assert begin % value.itemsize == 0, name
        begin += value.nbytes


def test_the_order_is_that_of_safetensors_own_writer(tensors, tmp_path):
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, tmp_path / "theirs")
    write(tmp_path / "ours", chain([header(tensors, {})], values(tensors)))
    offsets = [
        {name: entry["data_offsets"] for name, entry in read(tmp_path / file).items()} for file in ("ours", "theirs")
    ]
    assert offsets[0] == offsets[1]


def read(path):
    from pipeline.model.files import read_header

    return {name: entry for name, entry in read_header(path).items() if name != "__metadata__"}
