"""Tokenizers that cannot be loaded are named by their file; a text that one has no ids for is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.errors import RegrowError

WORDS = ("<s>", "</s>", "the", "river", "runs")


def by_words(unknown: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    vocabulary = {word: number for number, word in enumerate([*WORDS, *([unknown] if unknown else [])])}
    words = Tokenizer(models.WordLevel(vocabulary, **({"unk_token": unknown} if unknown else {})))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token=unknown)


class OfItsOwn(PreTrainedTokenizerFast):
    """One whose ids are made by its own call."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def test_a_word_that_a_tokenizer_has_no_token_for_is_refused_with_its_text():
    encoder = make_encoder(by_words(), special_tokens="parse")
    assert encoder("the river runs") == [2, 3, 4, 1]
    with pytest.raises(RegrowError, match=r"cannot encode 'the house runs' \(.*UNK.*\); .*unk_token") as error:
        encoder.batch(["the river", "the house runs", "runs"])
    assert error.value.__cause__ is None, "a traceback stands in the log"
    # Where special tokens' strings are to be text, these are words too.
    with pytest.raises(RegrowError, match=r"cannot encode '.*UNK"):
        make_encoder(by_words())
    assert make_encoder(by_words("<unk>"))("the house runs") == [2, 5, 4, 1]


def test_so_is_one_of_a_tokenizer_with_a_call_of_its_own():
    own = OfItsOwn(tokenizer_object=by_words().backend_tokenizer, bos_token="<s>", eos_token="</s>")
    encoder = make_encoder(own, special_tokens="parse")
    assert encoder.engine is None and encoder("the river") == [2, 3, 1]
    with pytest.raises(RegrowError, match="cannot encode 'a river'"):
        encoder("a river")


def test_what_is_no_text_is_a_mistake_of_the_program(tiny_model):
    with pytest.raises(TypeError):
        make_encoder(load_tokenizer(tiny_model))(3)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "damaged, not valid JSON .*; fetch the model again"),
        ("[]", "no JSON object in it; fetch the model again"),
        ("\ufeff{}", "begins with a byte order mark"),
    ],
)
def test_a_broken_file_of_a_tokenizer_is_named(tiny_model, tmp_path, name, content, said):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / name).write_text(content, encoding="utf-8")
    with pytest.raises(RegrowError, match=rf"^{model}/{name}: {said}"):
        load_tokenizer(model)


def test_a_tokenizer_that_none_can_be_made_of_is_named(tiny_model, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tree = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**tree, "model": {"type": "NoSuch"}}))
    with pytest.raises(
        RegrowError, match=r"tokenizer\.json: no tokenizer can be made of it \(.*; fetch the model again"
    ):
        load_tokenizer(model)
