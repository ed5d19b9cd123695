"""A model without its weights: on no device, but for the buffers that no file holds."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks
from pipeline.model.hollow import buffers_to, make_buffers, without_weights
from pipeline.model.load import load_model
from tests.families import build


def test_a_buffer_that_no_file_holds_and_nobody_makes_is_refused():
    class Forgetful(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.model.layers[1].register_buffer("mask", torch.ones(3), persistent=False)

    config = build("llama").config
    with torch.device("meta"):
        model = Forgetful(config)
    with pytest.raises(RegrowError, match=r"buffer model\.layers\.1\.mask is in no file"):
        make_buffers(model)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma4", "gptj", "minimax", "deepseek_v3"])
def test_its_buffers_are_those_of_the_model_loaded_whole_and_nothing_else_is_there(family, tmp_path):
    build(family).to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        whole = load_model(tmp_path, dtype=str(dtype).removeprefix("torch."))
        hollow = without_weights(tmp_path, dtype, None, False)
        saved = whole.state_dict().keys()
        assert {value.device.type for value in hollow.parameters()} == {"meta"} and not hollow.training
        assert {value.dtype for value in hollow.parameters()} <= {dtype, torch.float32}
        made = {name: buffer for name, buffer in hollow.named_buffers() if name not in saved}
        expected = {name: buffer for name, buffer in whole.named_buffers() if name not in saved}
        assert made.keys() == expected.keys() and made, f"{family}: no buffer that is in no file: nothing is shown"
        for name, buffer in made.items():
            assert buffer.device.type == "cpu" and buffer.dtype == expected[name].dtype, name
            assert buffer.equal(expected[name]), f"{family} in {dtype}: {name} is not what loading makes"


def test_buffers_are_moved_by_replacing_them():
    """So that whoever kept what was there can put it back; a module's own alone, or all below it."""
    block = find_blocks(build("llama"))[0]
    block.register_buffer("own", torch.ones(2))
    block.self_attn.register_buffer("inner", torch.ones(3))
    kept = dict(block.named_buffers())
    buffers_to(block, "meta", recurse=False)
    assert block.own.is_meta and not block.self_attn.inner.is_meta
    buffers_to(block, "meta")
    assert block.self_attn.inner.is_meta
    assert kept["own"].equal(torch.ones(2)) and kept["self_attn.inner"].equal(torch.ones(3))
