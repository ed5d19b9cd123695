"""The tokens around a document: BOS where the tokenizer has that habit, and the separator that the config names."""

from __future__ import annotations

import pytest
from tokenizers import processors

from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.run import RegrowError

TEXT = "The city of Łódź, founded in 1423."


def test_a_document_is_its_text_and_the_separator(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    encoder = make_encoder(tokenizer)
    ids = encoder(TEXT)
    assert (encoder.bos, encoder.separator) == (None, tokenizer.eos_token_id)
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in ids[:-1]
    assert tokenizer.decode(ids[:-1]) == TEXT, "the text does not come back"
    assert make_encoder(tokenizer, "<s>")(TEXT) == [*ids[:-1], tokenizer.bos_token_id], "a separator of one's own"


def test_a_tokenizer_with_the_habit_keeps_its_bos(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    plain = make_encoder(tokenizer)(TEXT)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    encoder = make_encoder(tokenizer)
    assert encoder.bos == tokenizer.bos_token_id
    assert encoder(TEXT) == [tokenizer.bos_token_id, *plain], "BOS is missing, or stands twice"


def test_what_the_tokenizer_lacks_is_refused(tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(RegrowError, match=r"data.separator '<sep>' is not a token"):
        make_encoder(tokenizer, "<sep>")
    tokenizer.eos_token = None
    with pytest.raises(RegrowError, match="no EOS token"):
        make_encoder(tokenizer)
    with pytest.raises(RegrowError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)
