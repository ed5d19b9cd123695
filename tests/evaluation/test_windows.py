"""Rows of a text against transformers alone: overlap, BOS policies, what is dropped, and what is said of the text."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM

from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import perplexity
from pipeline.evaluation.windows import Protocol, text_rows
from pipeline.model.head import find_head


def llama_style(folder):
    """The tiny model's tokenizer with a habit of Llama's: a BOS before every text."""
    tokenizer = load_tokenizer(folder)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return llama_style(tiny_model)


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return make_encoder(llama_style(tiny_model), special_tokens="parse")


def by_transformers(model, tokenizer, text, length, stride, bos):
    """(perplexity, targets) as the library's guide computes it, on whole windows, in its own words: labels of -100."""
    ids = tokenizer(text, add_special_tokens=bos == "document", return_tensors="pt").input_ids[0]
    room, seen, total, count = length - (bos == "every"), 0, 0.0, 0
    for begin in range(0, len(ids) - room + 1, stride):
        window = ids[begin : begin + room]
        if bos == "every":
            window = torch.cat([torch.tensor([tokenizer.bos_token_id]), window])
        labels = window.clone()
        labels[: len(window) - (begin + room - seen)] = -100
        seen = begin + room
        with torch.no_grad():
            loss = model(input_ids=window[None], labels=labels[None]).loss.double().item()
        targets = int((labels[1:] != -100).sum())
        total, count = total + loss * targets, count + targets
    return math.exp(total / count), count


@pytest.mark.parametrize(
    ("length", "stride", "bos"),
    [
        (128, None, "none"),
        (128, None, "document"),
        (129, None, "every"),
        (128, 48, "none"),
        (129, 48, "every"),
        (2048, None, "none"),
    ],
)
def test_perplexities_are_those_of_a_few_lines_of_transformers(
    tiny_model, texts, tokenizer, encoder, length, stride, bos
):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    some = texts[: 8 if length < 2048 else 120]
    made = text_rows(some, encoder, Protocol(length, stride, bos), "text")
    found = perplexity(
        model, made.rows, micro_batch=4, device="cpu", head=find_head(model), counted_from=made.counted_from
    )
    step = stride or length - (bos == "every")
    value, tokens = by_transformers(model, tokenizer, "\n\n".join(some), length, step, bos)
    assert len(made.rows) > 3 and found["tokens"] == tokens
    assert found["value"] == pytest.approx(value, rel=1e-4)
    assert (made.about["stride"], made.about["bos"]) == (step, bos)


@pytest.mark.parametrize(("bos", "where"), [("document", [0]), ("every", [0, 16, 32, 48]), ("none", [])])
def test_a_tokenizer_that_adds_a_bos_by_itself_gives_exactly_one(texts, tokenizer, encoder, bos, where):
    assert encoder.bos == tokenizer.bos_token_id, "the tokenizer has no such habit: nothing is shown"
    rows = text_rows(texts[:8], encoder, Protocol(16, bos=bos, rows=4), "text").rows
    assert (rows.flatten() == tokenizer.bos_token_id).nonzero().flatten().tolist() == where
    apart = text_rows(texts[:8], encoder, Protocol(16, bos=bos, join=None), "text").rows.flatten()
    count = int((apart == tokenizer.bos_token_id).sum())
    assert count == {"document": 8, "every": len(apart) // 16, "none": 0}[bos]


def test_overlapping_rows_count_every_token_once(texts, encoder):
    whole = text_rows(texts[:4], encoder, Protocol(64, 24, "none"), "text")
    ids = next(encoder.inside(["\n\n".join(texts[:4])]))
    covered = len(ids) - whole.about["left_over"]
    assert 0 <= whole.about["left_over"] < 24
    assert int((64 - whole.counted_from).sum()) == covered - 1, "all but the first token are targets, once"
    targets = [row[first:].tolist() for row, first in zip(whole.rows, whole.counted_from.tolist(), strict=True)]
    assert [token for row in targets for token in row] == ids[1:covered]


def test_the_end_too_short_for_a_row_is_dropped_and_a_text_too_short_refused(texts, encoder):
    ids = next(encoder.inside([texts[0]]))
    made = text_rows([texts[0]], encoder, Protocol(len(ids) // 2 - 1, bos="none"), "text")
    assert len(made.rows) == 2 and made.about["left_over"] == len(ids) - 2 * (len(ids) // 2 - 1) > 0
    assert made.rows.flatten().tolist() == ids[: len(ids) - made.about["left_over"]]
    with pytest.raises(RegrowError, match=rf"^name: {len(ids):,} tokens in all, not one row of 5,000; lower name\.len"):
        text_rows([texts[0]], encoder, Protocol(5000, bos="none"), "name")
    with pytest.raises(RegrowError, match=r"name\.stride 32: a row has 31 tokens of text"):
        text_rows([texts[0]], encoder, Protocol(32, 32, "every"), "name")


def test_the_first_rows_are_those_of_the_whole_and_no_more_is_read_than_they_need(texts, encoder):
    read = []

    def documents():
        for text in texts[:60]:
            read.append(text)
            yield text

    for join in ("\n\n", None):
        read.clear()
        first = text_rows(documents(), encoder, Protocol(32, 8, rows=5, join=join), "text")
        assert 0 < len(read) < 30, "the text was read to its end"
        assert first.about["text"]["documents"] == len(read) and first.about["left_over"] is None
        whole = text_rows(documents(), encoder, Protocol(32, 8, join=join), "text")
        assert torch.equal(first.rows, whole.rows[:5]) and first.rows.shape == (5, 32)


def test_what_was_read_is_said_and_hashed(encoder):
    documents = [" = Title = \n", "", "A <unk> of <unk> .\n"] * 9
    about = text_rows(documents, encoder, Protocol(8), "text").about["text"]
    joined = "\n\n".join(documents)
    assert about == {
        "sha256": hashlib.sha256(joined.encode()).hexdigest(),
        "documents": 27,
        "join": "\n\n",
        "form": "tokenised",
        "unknown": 18,
    }
    raw = text_rows(["It is raw text."] * 9, encoder, Protocol(8, join=None), "text").about["text"]
    assert (raw["form"], raw["unknown"], raw["join"]) == ("raw", 0, None)
