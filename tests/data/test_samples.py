"""Small fixed sets of tokens: a draw that depends on its seed alone, and held-out rows under each BOS policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import processors

from pipeline.data.documents import read_documents
from pipeline.data.fetching import ShardCache
from pipeline.data.samples import calibration_sequences, held_out_rows
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.run import RegrowError


@pytest.fixture
def encoder(tiny_model):
    """An encoder that puts a BOS before each document, as Llama's does."""
    tokenizer = load_tokenizer(tiny_model)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return make_encoder(tokenizer)


def draw(corpus, encoder, tmp_path, *, sequences=10, length=32, bos="document", seed=0):
    return calibration_sequences(corpus, encoder, sequences=sequences, length=length, bos=bos, seed=seed,
                                 cache=tmp_path)  # fmt: skip


@pytest.mark.parametrize("bos", ["document", "every", "none"])
def test_crops_are_where_they_say_and_follow_the_bos_policy(corpus, encoder, tmp_path, bos):
    ids, origins = draw(corpus, encoder, tmp_path, bos=bos)
    assert ids.shape == (10, 32)
    assert len({(origin["shard"], origin["document"]) for origin in origins}) == 10, "a document was drawn twice"
    assert len({origin["shard"] for origin in origins}) == 5, "the draw does not spread over the shards"
    shards = {shard.name: shard for shard in corpus}
    for row, origin in zip(ids.tolist(), origins, strict=True):
        shard = shards[origin["shard"]]
        text = dict(read_documents(Path(shard.name), shard.format))[origin["document"]]
        document = encoder(text)[:-1] if bos == "document" else encoder(text)[1:-1]
        crop = row[1:] if bos == "every" else row
        assert document[origin["offset"] : origin["offset"] + len(crop)] == crop, f"{origin} is another crop"
        inner = row[1:] if bos == "every" or (bos == "document" and origin["offset"] == 0) else row
        assert (row[0] == encoder.bos) == (inner is not row), f"BOS policy {bos}"
        assert encoder.bos not in inner and encoder.separator not in row
    if bos == "document":
        # The shortest documents leave one place for a crop of all their tokens: it begins with their BOS.
        longest = max(len(encoder(text)) - 1 for _, text in read_documents(Path(corpus[1].name), "jsonl"))
        whole, _ = draw(corpus[1:2], encoder, tmp_path, sequences=1, length=longest)
        assert whole[0, 0] == encoder.bos, "the tokenizer's own BOS was lost"


def test_the_draw_depends_on_its_seed_alone(corpus, encoder, tmp_path):
    first, origins = draw(corpus, encoder, tmp_path)
    again, origins_again = draw(corpus, encoder, tmp_path)
    assert first.equal(again) and origins == origins_again, "the same seed draws something else"
    other, _ = draw(corpus, encoder, tmp_path, seed=1)
    assert not first.equal(other), "another seed draws the same"


def test_a_corpus_of_too_few_long_documents_is_refused(corpus, encoder, tmp_path):
    ids, _ = draw(corpus, encoder, tmp_path, sequences=5, length=1000)
    assert ids.shape == (5, 1000), "the five long documents are enough for five sequences"
    with pytest.raises(RegrowError, match=r"only 5 documents .*1000 tokens, and score\.sequences is 6"):
        draw(corpus, encoder, tmp_path, sequences=6, length=1000)
    # One shard short of long documents is made up for by the others.
    ids, origins = draw(corpus, encoder, tmp_path, sequences=40, length=16)
    assert len(ids) == 40 and len({(o["shard"], o["document"]) for o in origins}) == 40


def test_excluded_domains_are_not_drawn(corpus, encoder, tmp_path):
    excluded = [replace(shard, exclude_domains=("RedPajamaWikipedia",)) for shard in corpus]
    with pytest.raises(RegrowError, match="only 0 documents"):
        draw(excluded, encoder, tmp_path)
    with pytest.raises(RegrowError, match="0 tokens in all"):
        held_out_rows(excluded, encoder, length=32, bos="document", rows=None, cache=tmp_path)


@pytest.mark.parametrize("bos", ["document", "every", "none"])
def test_held_out_rows_are_the_documents_in_file_order(corpus, encoder, tmp_path, bos):
    documents = [encoder(text) for shard in corpus for _, text in read_documents(Path(shard.name), shard.format)]
    stream = [token for ids in documents for token in (ids if bos == "document" else ids[1:])]
    room = 31 if bos == "every" else 32
    all_rows = held_out_rows(corpus, encoder, length=32, bos=bos, rows=None, cache=tmp_path)
    assert all_rows.shape == (len(stream) // room, 32), "rows are missing, or the incomplete one was kept"
    inner = all_rows[:, 1:] if bos == "every" else all_rows
    assert inner.flatten().tolist() == stream[: inner.numel()], "rows are not the documents end to end"
    if bos == "every":
        assert (all_rows[:, 0] == encoder.bos).all()
    assert held_out_rows(corpus, encoder, length=32, bos=bos, rows=7, cache=tmp_path).equal(all_rows[:7])


def test_a_bos_that_the_tokenizer_lacks_is_refused(corpus, tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.bos_token = None
    encoder = make_encoder(tokenizer)
    with pytest.raises(RegrowError, match=r"score\.bos is every, but this tokenizer has no BOS"):
        draw(corpus, encoder, tmp_path, bos="every")
    with pytest.raises(RegrowError, match=r"evaluate\.perplexity\.bos is every"):
        held_out_rows(corpus, encoder, length=32, bos="every", rows=1, cache=tmp_path)


def test_too_little_held_out_text_is_refused(shard_of, encoder, tmp_path):
    from pipeline.data.listing import list_source

    shard_of("a.jsonl", ["one short text"])
    shards = list_source(str(tmp_path / "corpus")).shards
    with pytest.raises(RegrowError, match=r"held-out documents: \d+ tokens in all, not one row of 512"):
        held_out_rows(shards, encoder, length=512, bos="document", rows=None, cache=tmp_path)


def test_no_copy_stays_of_what_was_read_for_calibration_or_held_out_rows(remote, corpus, encoder, cache, tmp_path):
    """From a cache with room for one shard at a time; the held-out rows are those of local shards."""
    far = [remote(number) for number in range(5)]
    limited = ShardCache(cache.folder, limit=max(shard.bytes for shard in far), attempts=2, wait=0.002)

    def copies():
        return [path.name for path in cache.folder.iterdir() if path.suffix != ".sha256"]

    assert draw(far, encoder, limited)[0].shape == (10, 32)
    assert cache.folder.exists() and copies() == [], "calibration shards stayed in the cache"
    for rows in (None, 3):
        local = held_out_rows(corpus, encoder, length=32, bos="document", rows=rows, cache=tmp_path)
        assert held_out_rows(far, encoder, length=32, bos="document", rows=rows, cache=limited).equal(local)
        assert copies() == [], f"held-out shards stayed in the cache (rows {rows})"
