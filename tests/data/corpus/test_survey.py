"""The survey: how near its estimates come to the number of tokens that there are."""

from __future__ import annotations

import pytest

from pipeline.data.corpus.survey import SAMPLE, survey
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.errors import RegrowError
from tests.data.corpora import listing_of


@pytest.fixture(scope="module")
def encode(tiny_model):
    return make_encoder(load_tokenizer(tiny_model))


def tokens_of(texts, encode):
    return sum(len(encode(text)) for text in texts)


def test_a_corpus_many_times_the_sample_is_estimated_within_five_percent(shard_of, texts, encode, cache, tmp_path):
    for number in range(4):
        shard_of(f"{number}.jsonl.zst", texts[number * 300 : number * 300 + 300] * 3)
    listing = listing_of(str(tmp_path / "corpus"))
    assert listing.census.characters > 4 * SAMPLE, "the sample is not a small part of the text"
    found = survey(listing.shards, encode, cache, listing.census.characters)
    true = 3 * tokens_of(texts[:1200], encode)
    assert abs(found.tokens / true - 1) < 0.05, f"{found.tokens} estimated, {true} there are"
    assert not found.exact and found.tokens_per_second > 1000


def test_strings_of_special_tokens_are_counted_in_the_sample(shard_of, texts, encode, cache):
    shard = shard_of("a.jsonl", [*texts[:10], "a </s> b </s>", "<s>", "", *texts[10:15]])
    found = survey(listing_of(str(shard)).shards, encode, cache, 1)
    assert (found.sampled, found.holding, found.special) == (17, 2, {"</s>": 2, "<s>": 1})


def test_a_remote_shard_says_what_has_no_text(server, shard_of, texts, encode, cache):
    server.files["/c/a.jsonl"] = shard_of("a.jsonl", [*texts[:10], {"text": None}, ""]).read_bytes()
    listed = [listing_of(f"{server.address}/c/a.jsonl", on_no_text=policy).shards for policy in ("skip", "raise")]
    assert survey(listed[0], encode, cache, None).without_text == {"empty": 1, "null": 1}
    with pytest.raises(RegrowError, match=r"a\.jsonl: a record without text \(null\), at record 10"):
        survey(listed[1], encode, cache, None)


def test_tokenised_shards_know_their_tokens(tmp_path, encode, cache):
    for name, ids in (("a", [[1, 2, 3], [], [4]]), ("b", [[5] * 7])):
        write_tokenised(tmp_path / "ids" / f"{name}.tar", ids, about={"vocabulary": 10})
    shards = listing_of(str(tmp_path / "ids")).shards
    found = survey(shards, encode, cache, 0)
    assert (found.tokens, found.exact, found.tokens_per_second) == (11, True, None)


@pytest.mark.parametrize("ending", ["jsonl.zst", "parquet", "tar"])
def test_one_remote_shard_stands_for_all(server, shard_of, texts, encode, cache, tmp_path, ending):
    """A third of each file is of an excluded domain, which is no part of the corpus."""
    kept = []
    for number in range(3):
        part = texts[number * 150 : number * 150 + 150]
        books = [{"text": text, "meta": {"redpajama_set_name": "RedPajamaBook"}} for text in part[100:]]
        plain = [{"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}} for text in part[:100]]
        kept += part[:100]
        path = shard_of(f"{number}.{ending}", [*plain, *books])
        server.files[f"/c/{path.name}"] = path.read_bytes()
    listing = listing_of(f"{server.address}/c/{{0..2}}.{ending}", exclude_domains=("RedPajamaBook",), wait=0.01)
    assert listing.census is None and len(listing.shards) == 3
    before = len(server.requests)
    found = survey(listing.shards, encode, cache, None)
    true = tokens_of(kept, encode)
    assert abs(found.tokens / true - 1) < 0.15, f"{found.tokens} estimated from one shard, {true} there are"
    bodies = {asked for method, asked, _ in server.requests[before:] if method == "GET"}
    assert len(bodies) == 1, f"more than one shard was fetched: {bodies}"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(ending)], "the copy stayed"


def test_remote_ids_are_not_all_fetched_to_be_counted(server, tmp_path, encode, cache):
    for number in range(3):
        path = tmp_path / "ids" / f"{number}.tar"
        write_tokenised(path, [[7] * 2000] * 30, about={"vocabulary": 10})
        server.files[f"/ids/{number}.tar"] = path.read_bytes()
    shards = listing_of(f"{server.address}/ids/{{0..2}}.tar", format="tokenised", wait=0.01).shards
    found = survey(shards, encode, cache, None)
    assert (found.tokens, found.exact) == (180_000, False)
    fetched = {asked for method, asked, _ in server.requests if method == "GET"}
    assert len(fetched) == 1, f"every shard was fetched for a report: {fetched}"
