"""Folders with tokenizer.model alone: sentencepiece's own tokens, or words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, LlamaConfig

from pipeline.data.pieces import TRIED, sentencepiece_tokenizer
from pipeline.data.tokens import load_tokenizer
from pipeline.errors import RegrowError
from tests.sentencepieces import write_pieces


@pytest.fixture(scope="module")
def pieces(texts, tmp_path_factory) -> Path:
    """A folder of a Llama's config and a tokenizer.model. Not to be changed."""
    folder = tmp_path_factory.mktemp("pieces")
    write_pieces(folder, texts[:200], 600, byte_fallback=True, unk_id=0, bos_id=1, eos_id=2)
    LlamaConfig().save_pretrained(folder)
    return folder


def test_tokens_are_sentencepieces_own(pieces):
    own, ours = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model")), load_tokenizer(pieces)
    for text in (*TRIED, "Zoë's 3 rivers"):
        assert ours(text, add_special_tokens=False)["input_ids"] == own.encode(text), text
    plain = AutoTokenizer.from_pretrained(pieces)
    assert plain(TRIED[0])["input_ids"] != own.encode(TRIED[0]), "transformers' guess is right by now: this file can go"


def test_what_transformers_cannot_make_is_refused(texts, tmp_path):
    """Words that are pieces with their spaces behind them: no class of transformers reads them so."""
    write_pieces(tmp_path, texts[:200], 600, treat_whitespace_as_suffix=True)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(
        RegrowError, match=r"other tokens of it than sentencepiece does; add the tokenizer_config\.json"
    ):
        load_tokenizer(tmp_path)


def test_other_folders_are_left_to_transformers(pieces, tiny_model, tmp_path):
    assert sentencepiece_tokenizer(tiny_model) is None
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert sentencepiece_tokenizer(tmp_path) is None, "a file of another kind"
    shutil.copy(pieces / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert sentencepiece_tokenizer(tmp_path) is None, "the folder says itself how"
