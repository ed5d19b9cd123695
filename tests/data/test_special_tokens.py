"""Special tokens' strings as text, also where a model's vocabulary holds them; other added tokens stay as they are."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.data.special_tokens import HIDDEN, count_strings, special_strings
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.errors import RegrowError

SPECIAL = ["<unk>", "<s>", "</s>"]
#: The model, how it splits, and its trainer; all but the BPE of bytes find "</s>" in their vocabulary again.
KINDS = {
    "Unigram": (models.Unigram, {}, pre_tokenizers.Metaspace(), trainers.UnigramTrainer, {"unk_token": "<unk>"}),
    "words": (models.WordLevel, {}, pre_tokenizers.WhitespaceSplit(), trainers.WordLevelTrainer, {}),
    "WordPiece": (models.WordPiece, {}, pre_tokenizers.WhitespaceSplit(), trainers.WordPieceTrainer, {}),
    "BPE of words": (models.BPE, {"ignore_merges": True}, pre_tokenizers.WhitespaceSplit(), trainers.BpeTrainer, {}),
    "BPE of bytes": (models.BPE, {}, pre_tokenizers.ByteLevel(), trainers.BpeTrainer, {}),
}


def trained(name, texts):
    model, settings, split, trainer, more = KINDS[name]
    tokenizer = Tokenizer(model(**settings) if name == "Unigram" else model(unk_token="<unk>", **settings))
    tokenizer.pre_tokenizer = split
    # Among them the very string, so that a model may learn it as a word.
    training = [*texts[:60], *["on </s> and </s> again"] * 40]
    tokenizer.train_from_iterator(
        training, trainer(vocab_size=700, special_tokens=SPECIAL, show_progress=False, **more)
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, extra_special_tokens=["<|end of turn|>"])
    fast.add_tokens([AddedToken("Łódź", normalized=False)])
    return fast


@pytest.mark.parametrize("name", KINDS)
def test_no_string_becomes_its_token_and_all_other_texts_keep_their_ids(name, texts):
    tokenizer = trained(name, texts)
    plain, parse = make_encoder(tokenizer), make_encoder(tokenizer, "eos", "parse")
    library = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    library.encode_special_tokens = True
    leaks = tokenizer.eos_token_id in library.encode("a </s> b", add_special_tokens=False).ids
    assert leaks == (name != "BPE of bytes") == (HIDDEN in plain.engine.to_str()), "not the case that is to be shown"
    for string in ("<s>", "</s>", "<|end of turn|>"):
        number = tokenizer.convert_tokens_to_ids(string)
        for text in (string, f"a {string} b", f"a{string}{string}b", f"Łódź{string}Łódź"):
            assert plain(text)[:-1].count(number) == 0, f"{text!r} is the token {number} in {plain(text)}"
            assert parse(text)[:-1].count(number) == text.count(string), f"{text!r} as {parse(text)}"
    added = tokenizer.convert_tokens_to_ids("Łódź")
    assert added in plain("see Łódź") and added in plain("Łódź </s>"), "an added token that is not special was split"
    for text in [*texts[60:160], "Łódź or Łódź", "\u2603 unknown \u2603", "a < s > b"]:
        assert plain(text) == parse(text), f"other ids for a text without a special token's string: {text[:60]!r}"


@pytest.fixture(scope="module")
def slow(texts, tmp_path_factory):
    """A sentencepiece tokenizer that transformers runs in Python, with an added token that is not special."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("slow")
    training = {"vocab_size": 500, "model_type": "unigram", "byte_fallback": True, "minloglevel": 2, "num_threads": 1}
    with (folder / "spiece.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=(text[:1000] for text in texts[:200]), model_writer=file, **training
        )
    config = {"tokenizer_class": "BertGenerationTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken("Łódź", normalized=False)])
    return tokenizer


def test_a_slow_tokenizer_keeps_its_other_added_tokens(slow, texts):
    plain, parse = make_encoder(slow), make_encoder(slow, "eos", "parse")
    added = slow.convert_tokens_to_ids("Łódź")
    assert plain.engine is None and added >= 500, "this test is of tokenizers in Python code"
    assert added in plain("see Łódź") and added in plain("Łódź </s> Łódź")
    assert slow.eos_token_id not in plain("Łódź</s>Łódź </s>")[:-1]
    for text in [*texts[:40], "see Łódź"]:
        assert plain(text) == parse(text), f"other ids for a text without a special token's string: {text[:60]!r}"


def test_a_special_token_of_one_character_takes_no_character_away(tiny_model):
    """As where padding is done with "!": in a text it is a character, under any setting."""
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.pad_token = "!"
    plain, parse = make_encoder(tokenizer), make_encoder(tokenizer, "eos", "parse")
    assert tokenizer.decode(plain("Stop! </s>")[:-1]) == "Stop! </s>", "a character was lost"
    assert HIDDEN not in plain.engine.to_str() and plain("Stop !") == parse("Stop !")


def test_a_token_that_is_special_by_its_name_alone_is_one(texts):
    """Its entry among the added tokens does not say so, and the library would still look for it."""
    tokenizer = trained("BPE of bytes", texts)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "</s>"
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    plain, parse = make_encoder(tokenizer), make_encoder(tokenizer, "eos", "parse")
    counts = [encoder("a</s>b")[:-1].count(tokenizer.eos_token_id) for encoder in (plain, parse)]
    assert counts == [0, 1] and HIDDEN in plain.engine.to_str()
    assert plain("Łódź and more") == parse("Łódź and more")


def test_a_tokenizer_that_cannot_take_them_as_text_is_refused(tiny_model):
    class Stubborn(PreTrainedTokenizerFast):
        """Code of its own, which knows nothing of the setting."""

        def __call__(self, text, **more):
            return super().__call__(text, **{**more, "split_special_tokens": False})

    tokenizer = Stubborn.from_pretrained(tiny_model)
    with pytest.raises(
        RegrowError, match=r"data\.special_tokens is plain, but .* of </s>, <s> in any text; set .*parse"
    ):
        make_encoder(tokenizer)
    assert make_encoder(tokenizer, "eos", "parse")("a</s>b").count(tokenizer.eos_token_id) == 2


def test_strings_are_counted_the_longest_first(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_special_tokens({"extra_special_tokens": ["</s></s>", "[x]"]})
    tokenizer.add_tokens(["Łódź"])
    assert special_strings(tokenizer) == ("</s></s>", "</s>", "<s>", "[x]")
    texts = ["none", "</s></s></s> and [x]", "x", "[x][x] Łódź"]
    assert count_strings(texts, special_strings(tokenizer)) == (2, Counter({"</s></s>": 1, "</s>": 1, "[x]": 3}))
    assert count_strings(texts, ()) == (0, Counter())
