"""Generation against step-by-step argmax without a cache, what a sample's text is, and what must stay untouched."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline.data.tokens import Encoder, make_encoder
from pipeline.errors import RegrowError
from pipeline.evaluation.generation import _behind, encode_prompt, generate_samples

PROMPTS = ("The ferry crosses", "In spring the meadows beside the water", "Nobody")


def argmax_ids(model, ids: list[int], count: int) -> list[int]:
    """``count`` ids after ``ids``, each from a full forward over all before it, without a cache."""
    model.eval()
    made = list(ids)
    with torch.no_grad():
        for _ in range(count):
            made.append(int(model(input_ids=torch.tensor([made]), use_cache=False).logits[0, -1].argmax()))
    return made[len(ids) :]


def end_at(model, token: int) -> None:
    model.generation_config.eos_token_id = token


def test_samples_equal_argmax_without_cache(model, tokenizer, encoder):
    samples = generate_samples(model, encoder, PROMPTS, 16, "cpu")
    assert [sample["prompt"] for sample in samples] == list(PROMPTS)
    assert model.training, "the training flag was not restored"
    for sample in samples:
        ids = tokenizer(sample["prompt"])["input_ids"]
        whole = tokenizer.decode(ids + argmax_ids(model, ids, 16), skip_special_tokens=True)
        assert sample["prompt"] + sample["text"] == whole, "not what argmax writes step by step"
    assert len({sample["text"] for sample in samples}) == 3, "texts that are all alike cannot show a mix-up"


def test_own_settings_of_the_model_do_not_matter_and_come_back(model, encoder, caplog, monkeypatch):
    plain = generate_samples(model, encoder, PROMPTS, 12, "cpu")
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p, own.top_k, own.min_p = True, 0.6, 0.9, 20, 0.1
    own.repetition_penalty, own.no_repeat_ngram_size, own.max_length, own.min_length = 1.7, 2, 20, 5
    kept = own.to_dict()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate_samples(model, encoder, PROMPTS, 12, "cpu") == plain, "chat settings changed greedy text"
    assert not caplog.records, f"generate warned: {[record.getMessage() for record in caplog.records]}"
    assert model.generation_config is own and own.to_dict() == kept, "the model's own settings were lost"


def test_samples_stop_at_an_end_token(model, tokenizer, encoder):
    ids = tokenizer(PROMPTS[0])["input_ids"]
    made = argmax_ids(model, ids, 8)
    first = next(place for place in range(2, 8) if made[place] not in made[:place])
    end_at(model, made[first])
    text = generate_samples(model, encoder, PROMPTS[:1], 16, "cpu")[0]["text"]
    whole = tokenizer.decode(ids + made[: first + 1], skip_special_tokens=True)
    assert PROMPTS[0] + text == whole, "the sample did not stop at the end token"


def bpe(template: str | None = None, decoder=None, **special: str) -> Encoder:
    """An encoder of a token for each byte and one for each special token."""
    names = list(dict.fromkeys(special.values()))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*names, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoder or decoders.ByteLevel()
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, backend.token_to_id(name)) for name in names if name in template]
        )
    return make_encoder(PreTrainedTokenizerFast(tokenizer_object=backend, **special))


@pytest.mark.parametrize(
    ("template", "special", "leading"),
    [
        (None, {"bos_token": "<s>", "eos_token": "</s>"}, []),
        ("<s> $A", {"bos_token": "<s>", "eos_token": "</s>"}, ["<s>"]),
        ("$A </s>", {"bos_token": "<s>", "eos_token": "</s>"}, []),
        ("<s> $A </s>", {"bos_token": "<s>", "eos_token": "</s>"}, ["<s>"]),
        ("</s> $A", {"bos_token": "</s>", "eos_token": "</s>"}, ["</s>"]),
        ("[CLS] $A [SEP]", {"cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "</s>"}, []),
    ],
)
def test_a_prompt_begins_as_documents_do_and_has_no_end(model, template, special, leading):
    encoder = bpe(template, **special)
    ids = encode_prompt(model, encoder, "The river", 8)
    expected = [*leading, *"TheĠriver"]
    found = encoder.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert ids.shape == (1, len(expected)) and found == expected, f"{template}: the prompt is {found}"
    assert encoder("The river")[:-1] == ids[0].tolist(), "a document begins otherwise"


@pytest.mark.parametrize(("prompt", "inside"), [("", []), (" ", ["Ġ"]), ("\n", ["Ċ"])])
def test_a_prompt_without_words_is_what_it_is_behind_the_bos(model, prompt, inside):
    encoder = bpe("<s> $A", bos_token="<s>", eos_token="</s>")
    ids = encode_prompt(model, encoder, prompt, 8)
    assert encoder.tokenizer.convert_ids_to_tokens(ids[0].tolist()) == ["<s>", *inside]
    (sample,) = generate_samples(model, encoder, [prompt], 8, "cpu")
    made = argmax_ids(model, ids[0].tolist(), 8)
    made = made[: made.index(encoder.separator)] if encoder.separator in made else made
    assert made and sample["text"] == encoder.tokenizer.decode(made, skip_special_tokens=True)


def words(count: int, *more: str, clean_up: bool = False) -> Encoder:
    """An encoder of whole words with their spaces, as SentencePiece has them: word1 to wordN, and ``more``."""
    listed = ["</s>", *(f"\u2581{word}" for word in (*more, *(f"word{number}" for number in range(1, count))))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(listed)}, "</s>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return make_encoder(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=clean_up)
    )


def test_a_first_word_keeps_its_space_where_decoding_alone_would_lose_it(model):
    encoder = words(model.config.vocab_size)
    text = generate_samples(model, encoder, ["word5 word7"], 6, "cpu")[0]["text"]
    made = argmax_ids(model, encoder("word5 word7")[:-1], 6)
    made = encoder.tokenizer.convert_ids_to_tokens(made[: made.index(0)] if 0 in made else made)
    assert made and text == "".join(made).replace("\u2581", " "), f"{made} became {text!r}"


def test_spaces_that_a_tokenizer_would_clean_up_stay_as_the_ids_say():
    encoder = words(3, "n't", ".", clean_up=True)
    prompt, whole = encoder("word1 .")[:-1], encoder("word1 . n't word2")[:-1]
    assert encoder.tokenizer.decode(whole) == "word1.n't word2", "shows nothing: nothing is cleaned up"
    assert _behind(encoder.tokenizer, prompt, whole) == " n't word2"


def test_a_decoder_that_joins_the_prompt_with_what_follows_does_not_bring_the_prompt_back(model):
    """The text is then that of the new ids alone."""
    encoder = bpe(
        bos_token="<s>",
        eos_token="</s>",
        decoder=decoders.Sequence([decoders.ByteLevel(), decoders.Replace("river", "RIVER")]),
    )
    ids = encoder("a rive")[:-1]
    whole = [*ids, *encoder("r bank")[:-1]]
    assert not encoder.tokenizer.decode(whole).startswith(encoder.tokenizer.decode(ids)), "shows nothing"
    assert _behind(encoder.tokenizer, ids, whole) == "r bank"


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "message"),
    [
        ("", 4, r"has no tokens, and this tokenizer puts no BOS.*evaluate\.generation\.prompts"),
        ("Nobody", 64, "only 64 positions"),
        ("Nobody", 0, "0 new tokens"),
    ],
)
def test_refuses_what_cannot_be_generated(model, encoder, prompt, new_tokens, message):
    with pytest.raises(RegrowError, match=message):
        generate_samples(model, encoder, [prompt], new_tokens, "cpu")
