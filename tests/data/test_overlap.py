"""Overlap: a document is known again by its text alone, and what cannot be looked into is counted."""

from __future__ import annotations

import re

import pytest

from pipeline.data.listing import list_source
from pipeline.data.overlap import can_look_into, held_out_hashes, refuse_overlap
from pipeline.data.tokenised import write_tokenised
from pipeline.run import RegrowError


def book(text):
    return {"text": text, "meta": {"redpajama_set_name": "RedPajamaBook"}}


@pytest.fixture
def listed(shard_of, tmp_path):
    """``listed(name, documents, **options)``: the one shard of a source."""

    def make(name, documents, **options):
        path = shard_of(name, documents)
        return list_source(str(path), **options).shards[0]

    return make


@pytest.mark.parametrize("ending", ["jsonl.zst", "jsonl.gz", "parquet", "tar"])
def test_the_same_text_is_found_in_every_format(listed, texts, ending):
    corpus = listed(f"a.{ending}", texts[:30])
    kept = listed("kept.jsonl", [*texts[30:40], texts[17]])
    said = []
    with pytest.raises(RegrowError) as caught:
        refuse_overlap([corpus], [kept], said.append)
    assert "1 documents of the corpus are held out too" in str(caught.value)
    assert f"{corpus.name}, document 17 (held out as {kept.name}, document 10)" in str(caught.value)
    assert said == [f"shard 1 of 1: looking for held-out documents in {corpus.name}"]
    assert refuse_overlap([corpus], [listed("other.jsonl", texts[30:40])]) == 0


def test_three_are_named_and_all_are_counted(listed, texts):
    corpus, kept = listed("a.jsonl", texts[:30]), listed("kept.jsonl", texts[10:15])
    with pytest.raises(RegrowError, match=r"^5 documents") as caught:
        refuse_overlap([corpus], [kept])
    numbers = re.findall(r"a\.jsonl, document (\d+) ", str(caught.value))
    assert numbers == ["10", "11", "12"] and "; ..." in str(caught.value)


def test_a_document_that_is_left_out_on_either_side_is_no_overlap(listed, texts):
    shared = book(texts[0])
    corpus = listed("a.jsonl", [*texts[1:9], shared], exclude_domains=("RedPajamaBook",))
    kept = listed("kept.jsonl", [*texts[20:25], shared])
    assert refuse_overlap([corpus], [kept]) == 0
    everything = listed("b.jsonl", [*texts[1:9], shared])
    with pytest.raises(RegrowError, match="document 8"):
        refuse_overlap([everything], [kept])


def test_one_more_space_makes_another_document(listed, texts):
    corpus = listed("a.jsonl", [texts[0], texts[1] + " ", "東京"])
    assert refuse_overlap([corpus], [listed("kept.jsonl", [texts[1], texts[0][:-1]])]) == 0
    with pytest.raises(RegrowError, match="document 2"):
        refuse_overlap([corpus], [listed("other.jsonl", ["東京"])])


def test_what_holds_no_text_is_counted_and_not_read(listed, texts, tmp_path):
    write_tokenised(tmp_path / "ids" / "a.tar", [[1, 2], [3]], about={"vocabulary": 10})
    ids = list_source(str(tmp_path / "ids")).shards[0]
    corpus, kept = listed("a.jsonl", texts[:5]), listed("kept.jsonl", texts[5:9])
    assert not can_look_into(ids) and can_look_into(corpus)
    assert refuse_overlap([corpus, ids], [kept]) == 1 and refuse_overlap([corpus], [kept, ids]) == 1
    assert len(held_out_hashes([kept, ids])) == 4
