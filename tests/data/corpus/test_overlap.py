"""Overlap: a document is known again by its text alone, while the corpus is decoded, and never a second time."""

from __future__ import annotations

import re
import shutil

import pytest

from pipeline.data.corpus.overlap import can_look_into, held_out_hashes, read_hashes, refuse_overlap, write_hashes
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.progress import Progress
from pipeline.errors import RegrowError
from tests.data.corpora import listing_of


def book(text):
    return {"text": text, "meta": {"redpajama_set_name": "RedPajamaBook"}}


@pytest.fixture
def kept(shard_of, cache):
    """``kept(documents, **options)``: hashes of the documents of a held-out shard."""

    def make(documents, **options):
        return held_out_hashes(listing_of(str(shard_of("../kept/kept.jsonl", documents)), **options).shards, cache)

    return make


@pytest.fixture
def searched(shard_of):
    """``searched(name, documents, held_out, **options)``: the listing of a source of one shard."""
    return lambda name, documents, held_out, **options: listing_of(
        str(shard_of(name, documents)), held_out=held_out, **options
    )


@pytest.mark.parametrize("ending", ["jsonl.zst", "jsonl.gz", "parquet", "tar"])
def test_the_same_text_is_found_in_every_format_in_the_pass_that_lists_it(searched, kept, texts, tmp_path, ending):
    listing = searched(f"a.{ending}", texts[:30], kept([*texts[30:40], texts[17]]))
    shutil.rmtree(tmp_path / "corpus")  # Nothing is read again.
    with pytest.raises(RegrowError) as caught:
        refuse_overlap(listing.twins)
    assert str(caught.value).startswith("1 document of the corpus is held out too")
    expected = rf"{listing.shards[0].name}, document 17 \(held out as \S+kept\.jsonl, document 10\)"
    assert re.search(expected, str(caught.value)), caught.value
    clean = searched(f"b.{ending}", texts[:30], kept(texts[30:40]))
    assert clean.twins == []
    refuse_overlap(clean.twins)


def test_three_are_named_and_all_are_counted(searched, kept, texts):
    held_out = kept(texts[10:15])
    listings = [searched("a.jsonl", texts[:12], held_out), searched("b.jsonl", texts[12:30], held_out)]
    with pytest.raises(RegrowError, match=r"^5 documents") as caught:
        refuse_overlap(twin for listing in listings for twin in listing.twins)
    named = re.findall(r"([ab])\.jsonl, document (\d+) ", str(caught.value))
    assert named == [("a", "10"), ("a", "11"), ("b", "0")] and "; ..." in str(caught.value)


def test_a_document_that_is_left_out_on_either_side_is_no_overlap(searched, kept, texts):
    documents = [*texts[1:9], book(texts[0])]
    held_out = kept([*texts[20:25], book(texts[0])])
    assert searched("a.jsonl", documents, held_out, exclude_domains=("RedPajamaBook",)).twins == []
    assert [twin.count for _, twin in searched("b.jsonl", documents, held_out).twins] == [1]
    without = kept([*texts[20:25], book(texts[0])], exclude_domains=("RedPajamaBook",))
    assert searched("c.jsonl", documents, without).twins == []


def test_texts_that_say_nothing_are_no_twins(searched, kept, texts):
    held_out = kept([*texts[20:23], "", " ", {"text": None}])
    assert len(held_out) == 3, "a blank text counts as a document that is held out"
    assert searched("a.jsonl", [*texts[1:4], "", " ", {"text": None}, texts[21]], held_out).twins[0][1].count == 1


def test_one_more_space_makes_another_document(searched, kept, texts):
    corpus = [texts[0], texts[1] + " ", "東京"]
    assert searched("a.jsonl", corpus, kept([texts[1], texts[0][:-1]])).twins == []
    assert searched("b.jsonl", corpus, kept(["東京"])).twins[0][1].first[0].startswith("document 2 ")


def test_what_was_found_is_kept_and_holds_for_what_was_searched_for_alone(searched, kept, texts, tmp_path):
    """A listing that goes on knows what its first part found; other held-out documents are searched for anew."""
    first, other = kept([texts[3], texts[50]]), kept([texts[5], texts[50]])
    said: list[str] = []

    def again(held_out, **options):
        said.clear()
        with Progress(tmp_path / "progress.jsonl") as done:
            twins = listing_of(str(tmp_path / "corpus"), held_out=held_out, done=done, say=said.append, **options).twins
        return [place.split(" (")[0] for _, twin in twins for place in twin.first], len(said)

    searched("a.jsonl", [*texts[:8], book(texts[50])], {})
    assert again(first) == (["document 3", "document 8"], 1)
    assert again(first) == (["document 3", "document 8"], 0), "the file was decoded again, or its finding forgotten"
    assert again(first, exclude_domains=("RedPajamaBook",)) == (["document 3"], 1), "searched with another filter"
    assert again(other) == (["document 5", "document 8"], 1), "what was found for other held-out documents was taken"
    assert again({}) == ([], 0), "with nothing held out something was found"


def test_what_holds_no_text_is_not_read(shard_of, cache, texts, tmp_path):
    write_tokenised(tmp_path / "ids" / "a.tar", [[1, 2], [3]], about={"vocabulary": 10})
    ids = listing_of(str(tmp_path / "ids"), held_out={b"1": "some"})
    text = listing_of(str(shard_of("a.jsonl", texts[5:9]))).shards[0]
    assert not can_look_into(ids.shards[0]) and can_look_into(text) and ids.twins == []
    assert len(held_out_hashes([text, *ids.shards], cache)) == 4


def test_hashes_on_disk_find_the_same(tmp_path, kept, texts):
    held_out = kept(texts[:20])
    assert read_hashes(tmp_path / "h") == {}, "no file, nothing to search for"
    write_hashes(tmp_path / "h", held_out)
    assert (tmp_path / "h").stat().st_size == 20 * 16 and read_hashes(tmp_path / "h").keys() == held_out.keys()


def test_a_remote_held_out_set_is_fetched_hashed_and_dropped(remote, cache, corpus):
    far = remote(0)
    assert held_out_hashes([far], cache).keys() == held_out_hashes(corpus[:1], cache).keys()
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".sha256"], "a copy stayed"
