"""Shards and their manifest: one file is listed once, and nothing secret stands in a name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.data.shards import build_manifest, read_manifest, without_secrets
from pipeline.errors import RegrowError
from tests.data.corpora import listing_of


def test_a_manifest_survives_json_and_its_hash_names_its_content(corpus):
    corpus = [replace(shard, exclude_domains=("RedPajamaBook",)) for shard in corpus]
    assert any(shard.groups for shard in corpus), "no shard with row groups: the tuple would not be tried"
    skipped = [{"shard": "a/b.jsonl", "reason": "cut"}]
    manifest = build_manifest(corpus[1:], corpus[:1], skipped)
    assert read_manifest(json.loads(json.dumps(manifest))) == (corpus[1:], corpus[:1])
    assert json.loads(json.dumps(manifest))["skipped"] == skipped
    assert manifest["hash"] == build_manifest(corpus[1:], corpus[:1], skipped)["hash"]
    others = [
        build_manifest(corpus[2:], corpus[:1], skipped),
        build_manifest(corpus[1:], corpus[:1]),
        build_manifest([replace(corpus[1], source=1), *corpus[2:]], corpus[:1], skipped),
    ]
    for other in others:
        assert manifest["hash"] != other["hash"], "another corpus has the same hash"


def test_a_manifest_of_another_version_is_refused(corpus):
    manifest = json.loads(json.dumps(build_manifest(corpus, [])))
    del manifest["shards"][0]["groups"]
    with pytest.raises(RegrowError, match=r"another version.*groups.*redo stage data"):
        read_manifest(manifest)


def test_a_shard_in_two_places_is_refused(corpus, tmp_path):
    twin = tmp_path / "elsewhere" / "copy.jsonl"
    twin.parent.mkdir()
    twin.write_bytes((tmp_path / "corpus" / "part_1.jsonl").read_bytes())
    copies = listing_of(str(twin.parent)).shards
    with pytest.raises(RegrowError, match=r"part_1\.jsonl and .*copy\.jsonl are the same file"):
        build_manifest([*corpus, *copies], [])
    with pytest.raises(RegrowError, match=r"held-out shard .*copy\.jsonl is also in the corpus \(.*part_1\.jsonl\)"):
        build_manifest(corpus, copies)


def test_without_a_sha256_the_address_and_the_blob_tell(corpus):
    hub = replace(corpus[0], place="owner/name", kind="hub", revision="abc", sha256=None, etag="b10b", documents=None)
    with pytest.raises(RegrowError, match=r"held-out shard owner/name/part_0.* is also in the corpus"):
        build_manifest([hub], [hub])
    with pytest.raises(RegrowError, match=r"owner/name/part_0.* and mirror/name.* same file"):
        build_manifest([hub, replace(hub, place="mirror/name")], [])
    # An ETag is one server's word: equal ones on two files (same time and size, for nginx) prove nothing.
    url = replace(hub, kind="url", place="https://host/get", path="file.jsonl?id=1", revision=None)
    assert build_manifest([url, replace(url, path="file.jsonl?id=2")], [])["shards"]


def test_names_and_messages_hold_no_secret(corpus):
    shard = replace(corpus[0], kind="url", place="https://me:word@host/a", path="b.jsonl?Signature=KEY&x=1")
    assert shard.name == "https://host/a/b.jsonl"
    assert shard.address == "https://me:word@host/a/b.jsonl?Signature=KEY&x=1", "the file could not be fetched"
    text = "GET 'https://h/p?sig=KEY' with Bearer KEY.KEY and hf_KEYKEY, s3://k:KEY@bucket/x"
    assert "KEY" not in without_secrets(text), without_secrets(text)
    assert without_secrets("no question? a/b@c: none") == "no question? a/b@c: none"
    assert replace(corpus[0], path="what?.jsonl").name.endswith("what?.jsonl"), "a local name lost its end"
