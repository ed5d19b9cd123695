"""Multimodal wrappers: pruned, counted and trained in their text part, the vision tower left as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pipeline.commands.plan import plan
from pipeline.commands.plan_text import plan_text
from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import perplexity
from pipeline.importance.block_major import sweep_by_block
from pipeline.importance.sweep import removal_losses
from pipeline.model.architecture import auto_class, read_config
from pipeline.model.blocks import find_blocks
from pipeline.model.costs import meta_model, product_parameters, text_parameters
from pipeline.model.load import load_model
from pipeline.model.streaming import StreamedModel
from pipeline.model.surgery import prune_folder
from tests.families import BLOCKS, GATED, MULTIMODAL, QWEN_VISION, VOCABULARY, build_multimodal

REMOVED = [1, 4]
SLOW = {"llama4", "qwen3_5_moe"}


def rows(count: int = 3, length: int = 16) -> torch.Tensor:
    # Ids of text: the last ones stand for images.
    return torch.randint(3, VOCABULARY - 10, (count, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(
    scope="module",
    params=[pytest.param(family, marks=pytest.mark.slow if family in SLOW else ()) for family in MULTIMODAL],
)
def wrapper(request, tmp_path_factory) -> Path:
    """A wrapper's folder in bf16, with a file of what it does with images."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    build_multimodal(request.param).to(torch.bfloat16).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def pruned(wrapper, tmp_path_factory) -> Path:
    """The folder without two blocks."""
    target = tmp_path_factory.mktemp("pruned") / "model"
    record = prune_folder(wrapper, target, REMOVED, {}, dtype="bfloat16", say=lambda line: None)
    assert not record["left_out"] and not record["narrowed"], record
    return target


def test_the_pruned_folder_is_the_same_wrapper_with_its_tower_untouched(wrapper, pruned):
    before, after = (load_file(folder / "model.safetensors") for folder in (wrapper, pruned))
    moved = {}
    for name in after:
        parts = name.split(".layers.")
        if len(parts) == 2 and "vision" not in parts[0]:
            number, _, rest = parts[1].partition(".")
            moved[name] = f"{parts[0]}.layers.{[0, 2, 3, 5][int(number)]}.{rest}"
    assert moved and len(before) > len(after)
    assert [name for name, tensor in after.items() if not tensor.equal(before[moved.get(name, name)])] == []
    assert any("vision" in name or "visual" in name for name in after), "the tower is gone"
    assert (pruned / "preprocessor_config.json").is_file()
    config, dense = (json.loads((folder / "config.json").read_text()) for folder in (pruned, wrapper))
    assert config["architectures"] == dense["architectures"]
    assert {**config["vision_config"], "dtype": None} == {**dense["vision_config"], "dtype": None}
    assert config["text_config"]["num_hidden_layers"] == BLOCKS - 2
    assert config["text_config"]["regrow"]["removed_blocks"] == REMOVED
    # Tied or not, both configs say what the file holds.
    tied = not any("lm_head" in name for name in after)
    assert {config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]} == {tied}


def test_transformers_alone_loads_it_and_generates(pruned):
    model, loading = transformers.AutoModelForImageTextToText.from_pretrained(pruned, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
    with_cache, without = (model.generate(rows(1), use_cache=use, **settings) for use in (True, False))
    assert with_cache.equal(without) and with_cache.shape == (1, 22), "the cache changes what is generated"


def test_it_is_scored_in_both_orders_and_evaluated(wrapper, pruned, tmp_path):
    whole = load_model(wrapper, dtype="float32")
    losses = removal_losses(whole, rows())
    streamed = sweep_by_block(
        StreamedModel(wrapper, dtype="float32"), rows(), folder=tmp_path, micro_batch=3, say=lambda line: None
    )
    assert losses.allclose(streamed, rtol=1e-5), "block-major scores are others"
    found = perplexity(load_model(pruned, dtype="float32"), rows(), micro_batch=3, device="cpu")
    without = removal_losses(whole, rows(), blocks=[], without=REMOVED)
    assert found["loss"] == pytest.approx(float(without.sum()) / (3 * 15), rel=1e-5)


def test_what_is_said_to_be_trained_is_what_gets_a_gradient(wrapper):
    model = load_model(wrapper, dtype="float32")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    ids = torch.arange(3, VOCABULARY - 10).view(1, -1)[:, :60]
    model(ids, use_cache=False).logits.square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    said = {names[id(parameter)] for parameter in text_parameters(model)}
    # An expert that no token chose gets none, and would with other text.
    assert reached <= said and not any("vision" in name or "visual" in name for name in said)
    assert all("expert" in name for name in said - reached), sorted(said - reached)[:5]
    # A head that is not tied leaves the embeddings a lookup alone.
    lookup = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    assert product_parameters(model) == sum(parameter.numel() for parameter in text_parameters(model)) - lookup


def test_plan_counts_the_whole_model_and_what_is_trained_apart(wrapper, tiny_config):
    config = load_config(tiny_config, ["model.path=owner/name", f"model.architecture={wrapper}", "prune.remove=2"])
    made, model = plan(config), load_model(wrapper)
    text = sum(parameter.numel() for parameter in text_parameters(model))
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in find_blocks(model)]
    gone = sum(sorted(blocks)[:2])
    assert made["parameters"] == {
        "dense": model.num_parameters(),
        "pruned": model.num_parameters() - gone,
        "trained": text - gone,
    }
    tower = model.num_parameters() - text
    assert f"trained      {text - gone:,} of them; {tower:,} see no text" in plan_text(made)
    memory = made["memory"][0]
    assert memory["gradients"] == 4 * (text - gone), "the tower gets no gradients"
    assert memory["weights"] == 6 * (text - gone + tower)


def test_other_wrappers_are_refused_in_one_line_before_any_work(tmp_path, tiny_config):
    """Qwen2.5-VL has no causal class; Mllama's is its text part alone, and would leave out the tower."""
    text = {**GATED, "num_hidden_layers": 2}
    for config in (
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=QWEN_VISION),
        transformers.MllamaConfig(),
        transformers.T5Config(),
    ):
        config.save_pretrained(tmp_path / config.model_type)
        read = read_config(tmp_path / config.model_type)
        for refuse in (auto_class, meta_model):
            with pytest.raises(RegrowError, match=f"^model type {config.model_type}: .* can be pruned") as error:
                refuse(read)
            assert len(str(error.value)) < 250 and "\n" not in str(error.value)
        with pytest.raises(RegrowError, match=f"config.json: model type {config.model_type}"):
            plan(load_config(tiny_config, [f"model.path={tmp_path / config.model_type}"]))
        with pytest.raises(RegrowError, match=f"^model type {config.model_type}"):
            load_model(tmp_path / config.model_type)
