"""Which class a model folder is loaded with, what code of its own it names, and what is refused before it is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from pipeline.errors import RegrowError
from pipeline.model.architecture import WRAPPERS, auto_class, check_generation, own_code, read_config, tokenizer_code
from pipeline.model.load import load_model
from pipeline.model.streaming import StreamedModel
from tests.families import FAMILIES, MULTIMODAL, OTHERS
from tests.own_code import write_own_model


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model that may be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_code_of_a_model_s_own_is_named_with_what_allows_it(tiny_model, tmp_path):
    own = write_own_model(tiny_model, tmp_path / "own")
    assert own_code(own) == ["own_code.py"] and own_code(tiny_model) == []
    for load in (load_model, StreamedModel, read_config):
        with pytest.raises(RegrowError, match=r"code of its own \(own_code\.py\).*say trust_remote_code=True"):
            load(own)
    change_config(own, auto_map={"AutoModel": "owner/name--code_a.One", "AutoTokenizer": ["code_b.Slow", None]})
    assert own_code(own) == ["code_a.py", "code_b.py"]


@pytest.mark.parametrize("named", [None, [], "file.Class", {"AutoConfig": 5}, {"AutoTokenizer": ["a.B", {}]}])
@pytest.mark.parametrize("trusted", [False, True])
def test_an_auto_map_that_names_no_classes_is_refused(tiny_model, tmp_path, named, trusted):
    folder = shutil.copytree(tiny_model, tmp_path / "odd")
    change_config(folder, auto_map=named)
    with pytest.raises(RegrowError, match=r"odd/config\.json: auto_map is .*must name classes"):
        read_config(folder, trusted)
    change_config(folder, auto_map={})
    assert read_config(folder, trusted).model_type == "llama"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_broken_file_of_the_model_s_is_to_be_fetched_again(folder, name):
    (folder / name).write_text('{"auto_map": ')
    with pytest.raises(RegrowError, match=rf"{name}: damaged, not valid JSON .*; fetch the model again$"):
        (read_config if name == "config.json" else tokenizer_code)(folder)


def test_quantised_weights_are_refused_before_they_are_loaded(folder):
    change_config(folder, quantization_config={"quant_method": "fp8"})
    for load in (load_model, StreamedModel):
        with pytest.raises(RegrowError, match=r"config\.json: the weights are quantised \(quantization_config\)"):
            load(folder)


@pytest.mark.parametrize("values", [{"use_return_dict": False}, {"num_attention_heads": 0}, {"model_type": "no_such"}])
def test_a_config_that_transformers_cannot_read_is_refused_in_a_line(folder, values):
    change_config(folder, **values)
    with pytest.raises(
        RegrowError, match=r"config\.json: transformers cannot read this as a model's config: "
    ) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_causal_language_model_is_loaded_as_one(folder):
    """Of the whole: a text model, one with code of its own, and never the text part of a wrapper alone."""
    for family, (name, values) in {**FAMILIES, **OTHERS}.items():
        config = getattr(transformers, name)(**values)
        assert auto_class(config) is transformers.AutoModelForCausalLM, family
    change_config(folder, model_type="of_its_own")
    own = transformers.PreTrainedConfig.from_pretrained(folder)
    with pytest.raises(RegrowError, match="no causal language model of it"):
        auto_class(own)
    own.auto_map = {"AutoModelForCausalLM": "own.Model"}
    assert auto_class(own) is transformers.AutoModelForCausalLM


@pytest.mark.parametrize("family", MULTIMODAL)
def test_a_wrapper_is_loaded_with_its_tower(family):
    name, values, text, vision = MULTIMODAL[family]
    config = getattr(transformers, name)(**values, text_config=dict(text), vision_config=dict(vision))
    loader = auto_class(config)
    assert (loader is transformers.AutoModelForImageTextToText) == (config.model_type in WRAPPERS)
    with torch.device("meta"):
        names = [name for name, _ in loader.from_config(config).named_parameters()]
    assert any("vision" in name or "visual" in name for name in names), f"the text part alone would be loaded: {names}"


def test_what_a_wrapper_quantises_in_its_text_part_alone_is_refused_too(tmp_path):
    name, values, text, vision = MULTIMODAL["qwen3_5"]
    text_config = {**text, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    getattr(transformers, name)(**values, text_config=text_config, vision_config=dict(vision)).save_pretrained(tmp_path)
    with pytest.raises(RegrowError, match="the weights are quantised"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged, not valid JSON"),
        ("[]", "transformers cannot read this as settings of generation"),
        ('{"max_new_tokens": -4}', "`max_new_tokens` must be greater than 0, but is -4; mend it"),
        ('{"cache_implementation": "no_such"}', "no_such"),
        ('{"eos_token_id": "</s>"}', 'eos_token_id is "</s>"; it must be an id'),
        ('{"eos_token_id": [1, null]}', "must be an id, or a list of ids"),
    ],
)
def test_settings_of_generation_that_transformers_would_not_load_are_refused(folder, text, said):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(RegrowError, match=r"generation_config\.json: ") as error:
        check_generation(folder)
    assert said in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_settings_of_generation_may_be_missing_or_odd(folder):
    check_generation(folder)
    for text in ('{"temperature": 0.5}', '{"eos_token_id": [1, 2]}', '{"no_such": 1}'):
        (folder / "generation_config.json").write_text(text)
        check_generation(folder)
        load_model(folder)
    (folder / "generation_config.json").unlink()
    check_generation(folder)
