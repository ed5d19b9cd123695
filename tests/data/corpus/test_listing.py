"""Listing a source: whatever it is, its shards are pinned, in one order, once, and damage is met here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_documents
from pipeline.data.progress import Progress
from pipeline.data.shards import build_manifest, read_manifest
from pipeline.errors import RegrowError
from tests.data.corpora import listing_of


def test_what_is_not_there_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegrowError, match=r"empty.*no intact \.jsonl"):
        listing_of(str(tmp_path / "empty"))
    with pytest.raises(RegrowError, match="no such file or folder"):
        listing_of(str(tmp_path / "gone"))
    with pytest.raises(RegrowError, match=r"nosuch://x/y\.tar.*nosuch"):
        listing_of("nosuch://x/y.tar")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["b.json", "a.txt"],
            "there is b.json: if that is a shard, set the source's format: jsonl (a JSON object a line)",
        ),
        (["a.ndjson", "b.ndjson.gz"], "there is a.ndjson, ...: if that is a shard, set the source's format: jsonl (a"),
        (["text"], "there is text: if that is a shard, set the source's format: jsonl, tar or parquet"),
    ],
)
def test_files_that_are_no_shards_by_their_ending_are_named_with_what_to_set(tmp_path, names, said):
    folder = tmp_path / "text"
    folder.mkdir()
    for name in names:
        (folder / name).write_text('{"text": "One."}\n')
    for path in (folder, *([folder / names[0]] if len(names) == 1 else [])):
        with pytest.raises(RegrowError, match=r"no intact \.jsonl.* file in it \(files: '\*\*'\); ") as error:
            listing_of(str(path))
        assert said in str(error.value), str(error.value)
    if names[0].startswith("b"):
        assert [shard.path for shard in listing_of(str(folder), files="*.json", format="jsonl").shards] == ["b.json"]


def test_formats_of_text_may_stand_in_one_source(shard_of, texts, tmp_path):
    """Each shard is read as what it is, and the census sums them all."""
    names = ["a.jsonl", "b.parquet", "c.tar", "d.jsonl.gz", "e.tar.gz"]
    for number, name in enumerate(names):
        shard_of(name, texts[10 * number : 10 * number + 10])
    listing = listing_of(str(tmp_path / "corpus"))
    assert [shard.format for shard in listing.shards] == ["jsonl", "parquet", "tar", "jsonl", "tar"]
    read = [text for shard in listing.shards for _, text in read_documents(Path(shard.name), shard.format)]
    assert read == texts[:50] and listing.census.characters == sum(map(len, texts[:50]))


def test_damage_is_raised_or_left_out_and_recorded(corpus, tmp_path):
    path = tmp_path / "corpus" / "part_0.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedShard, match=r"part_0\.jsonl\.zst: damaged"):
        listing_of(str(tmp_path / "corpus"))
    said: list[str] = []
    listing = listing_of(str(tmp_path / "corpus"), on_damage="skip", say=said.append)
    assert listing.shards == corpus[1:]
    assert [entry["shard"] for entry in listing.skipped] == [corpus[0].name]
    assert "damaged" in listing.skipped[0]["reason"] and f"skipped: {listing.skipped[0]['reason']}" in said
    assert listing.census.documents == 58, "the documents of a skipped shard were counted"
    manifest = build_manifest(listing.shards, [], listing.skipped)
    assert manifest["skipped"] == listing.skipped, "the manifest does not say what was left out"
    for shard in corpus[1:]:
        (tmp_path / "corpus" / shard.path).write_bytes(b"")
    with pytest.raises(RegrowError, match=r"no intact.*5 damaged or empty ones were skipped"):
        listing_of(str(tmp_path / "corpus"), on_damage="skip")


def test_records_without_text_are_left_out_counted_and_said(shard_of, texts, tmp_path):
    """The damage policy has no part in it; a listing that goes on knows what was counted."""
    shard_of("a.jsonl", texts[:5])
    shard_of("b.jsonl.zst", [*texts[5:8], {"text": None}, "", {"body": "x"}, *texts[8:10]])
    shard_of("c.parquet", [{"text": texts[10]}, {"text": None}])
    for _ in range(2):
        said: list[str] = []
        with Progress(tmp_path / "progress.jsonl") as done:
            listing = listing_of(str(tmp_path / "corpus"), done=done, say=said.append)
        assert [shard.documents for shard in listing.shards] == [5, 8, 2], "the records' numbers count them too"
        kinds = {"empty": 1, "no such key": 1, "null": 1}
        assert [dict(shard.without_text) for shard in listing.shards] == [{}, kinds, {"null": 1}]
        assert listing.census.without_text == {"empty": 1, "no such key": 1, "null": 2}
        told = "left out: 4 records without text (empty 1, no such key 1, null 2) in 2 files; the first is record 3 of "
        assert said[-1] == f"{told}{tmp_path}/corpus/b.jsonl.zst", said
        with pytest.raises(
            RegrowError, match=r"b\.jsonl\.zst: 3 records without text \(.*\), the first, at record 3; mend"
        ):
            listing_of(str(tmp_path / "corpus"), on_no_text="raise")
    assert len(said) == 1, f"files were decoded again: {said}"
    entries = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    for entry in entries:
        del entry["census"]["without_text"]
    (tmp_path / "progress.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with Progress(tmp_path / "progress.jsonl") as done:
        assert listing_of(str(tmp_path / "corpus"), done=done) == listing, "what an earlier release counted was taken"
        for entry in done.known.values():
            entry["census"]["counted_by_an_earlier_release"] = 1
        assert listing_of(str(tmp_path / "corpus"), done=done) == listing, "a count that is made no more is in the way"
    pinned = json.loads(json.dumps(build_manifest(listing.shards, [])))
    assert [entry.get("without_text") for entry in pinned["shards"]] == [None, kinds, {"null": 1}]
    assert read_manifest(pinned)[0] == listing.shards


def test_a_manifest_knows_of_missing_texts_only_where_some_are(corpus):
    """So that the hash of every other corpus is the one of before there was a policy."""
    entry = build_manifest(corpus, [])["shards"][0]
    assert not {"without_text", "on_no_text"} & entry.keys()
    strict = [replace(shard, on_no_text="raise") for shard in corpus]
    pinned = json.loads(json.dumps(build_manifest(strict, [])))
    assert read_manifest(pinned)[0] == strict and pinned["shards"][0]["on_no_text"] == "raise"


def test_a_source_of_another_key_or_of_no_text_at_all_is_refused(shard_of, texts, tmp_path):
    shard_of("a.jsonl", texts[:5])
    path = shard_of("b.jsonl", [{"body": "x"}, {"body": "y", "title": "z"}])
    with pytest.raises(RegrowError, match=r"b\.jsonl: no string under the key 'text' .* keys that are there \(body\)"):
        listing_of(str(tmp_path / "corpus"), on_damage="skip")
    with pytest.raises(RegrowError) as caught:
        listing_of(str(path))
    assert not isinstance(caught.value, DamagedShard), "a wrong key is called damage"
    shard_of("c.jsonl", ["", " "])
    blank = listing_of(str(tmp_path / "corpus"), files="[ac].jsonl")
    assert [shard.documents for shard in blank.shards] == [5, 2], "one file of blank texts ends nothing"
    with pytest.raises(RegrowError, match=r"c\.jsonl': not one record with text; it has 2 records without text"):
        listing_of(str(tmp_path / "corpus" / "c.jsonl"))
