"""Texts of records: where a key leads, and what stands there instead of a text."""

from __future__ import annotations

import json

import pytest

from pipeline.data.formats.jsonl import parse_object
from pipeline.data.texts import HALF_A_PAIR, NoText, counted, text_of, why_no_text


@pytest.mark.parametrize(
    ("record", "key", "text"),
    [
        ({"text": "a"}, "text", "a"),
        ({"doc": {"text": "a"}}, "doc.text", "a"),
        ({"doc": {"of": {"text": "a"}}}, "doc.of.text", "a"),
        ({"doc.text": "literal", "doc": {"text": "a"}}, "doc.text", "literal"),
        ({"doc": {"of.text": "literal", "of": {"text": "a"}}}, "doc.of.text", "literal"),
    ],
)
def test_a_key_leads_to_its_text(record, key, text):
    assert text_of(record, key) == text


@pytest.mark.parametrize(
    ("record", "key", "kind"),
    [
        ({"text": None}, "text", "null"),
        ({"text": None, "a": 1}, "text.a", "no such key"),
        ({"doc.text": None, "doc": {"text": "a"}}, "doc.text", "null"),
        ({"doc": "a"}, "doc.text", "no such key"),
        ({"doc": ["a"]}, "doc.0", "no such key"),
        ({}, "text", "no such key"),
        ({"text": 0}, "text", "a number"),
        ({"text": float("nan")}, "text", "a number"),
        ({"text": False}, "text", "true or false"),
        ({"text": []}, "text", "a list"),
        ({"text": {"text": "a"}}, "text", "an object"),
    ],
)
def test_what_stands_there_instead_is_named(record, key, kind):
    assert text_of(record, key).kind == kind == why_no_text(text_of(record, key))


def test_the_keys_are_those_that_could_be_set():
    record = {"id": 1, "doc": {"body": "x", "more": {"deep": 1}}, "empty": {}, **dict.fromkeys("abcdefgh", "x")}
    assert text_of(record, "text") == NoText("no such key", ("id", "doc.body", "doc.more", "empty", *"abcd"))


def test_blank_texts_say_nothing_and_a_word_is_a_text():
    blank = [why_no_text(text) for text in ("", " \n\t", "\u3000\u00a0")]
    assert blank == ["empty", "white space alone", "white space alone"]
    assert [why_no_text(text) for text in ("null", ".", "\u200b")] == [None, None, None]
    assert counted({"null": 1200, "empty": 1}) == "1,201 records without text (null 1,200, empty 1)"
    assert counted({"null": 1}) == "1 record without text (null 1)"


def test_half_of_a_surrogate_pair_is_no_text():
    """JSON can hold it, and no tokenizer takes it; a whole pair is a character."""
    for text in ("half of a pair: \ud83d", "\udf31 begins with the other half"):
        assert text_of({"text": text, "id": 7}, "text") == NoText(HALF_A_PAIR, ("text", "id"))
    whole = json.loads('{"text": "a whole pair: \\ud83c\\udf31"}')
    assert text_of(whole, "text") == "a whole pair: 🌱"


@pytest.mark.parametrize("data", [b'["text"]', b'"text"', b"7", b"null", b"", b'{"text": '])
def test_what_is_no_object_is_no_record(data):
    with pytest.raises(ValueError):
        parse_object(data)
