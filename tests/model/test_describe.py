"""What is told of a model from its config alone, against the model with its weights."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks, remove_blocks
from pipeline.model.describe import Sizes, describe_folder


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_without_weights_are_those_of_the_weights(tmp_path, tied):
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=tied,
    )
    config.save_pretrained(tmp_path)
    described, model = describe_folder(tmp_path), LlamaForCausalLM(config)
    assert {parameter.device.type for parameter in described.parameters()} == {"meta"}
    assert [*map(type, find_blocks(described))] == [*map(type, find_blocks(model))]
    sizes = Sizes.of(described)
    assert sizes == Sizes.of(model) and sizes.whole == model.num_parameters()
    # By hand: four square projections, three of the MLP, two norms; the embedding, a head where it is not tied, a norm.
    assert sizes.blocks == (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32,) * 3
    assert sizes.whole - sum(sizes.blocks) == 300 * 32 * (1 if tied else 2) + 32
    cut = sum(parameter.numel() for parameter in remove_blocks(model, [0, 2]).parameters())
    assert sizes.whole - sizes.blocks[0] - sizes.blocks[2] == cut, "a cut model has another size than was counted"
    logits = described(torch.zeros((1, 2), dtype=torch.int64, device="meta")).logits
    assert logits.is_meta and logits.shape == (1, 2, 300), "it has weights to compute with, or other shapes"


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(RegrowError, match=r"config\.json"):
        describe_folder(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_act": "no_such"}, "hidden_act is 'no_such', which transformers does not know"),
        ({"rope_parameters": {"rope_type": "odd", "rope_theta": 1e4}}, "rope_parameters.rope_type is 'odd', which"),
        ({"hidden_size": -64}, "negative dimension -64"),
        ({"pad_token_id": 5000}, "Padding_idx must be within num_embeddings"),
        ({"head_dim": 0}, ""),
    ],
)
def test_values_that_no_model_can_be_made_of_are_refused_in_a_line_that_names_the_file(
    tiny_model, tmp_path, values, said
):
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **values}))
    with pytest.raises(RegrowError) as error:
        describe_folder(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/config.json: no model can be made from LlamaConfig: "), message
    assert said in message and message.endswith("fetch the model again") and "\n" not in message, message
