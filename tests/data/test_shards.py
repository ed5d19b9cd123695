"""Listing and pinning shards: what the manifest says is what is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.data.shards import build_manifest, fetch, list_shards, read_manifest
from pipeline.run import RegrowError, hash_file


def test_a_folder_a_glob_and_a_file_list_the_same_shards(corpus, tmp_path):
    folder = tmp_path / "corpus"
    (folder / "notes.txt").write_text("no shard")
    by_folder = list_shards(str(folder))
    assert by_folder == corpus, "a file that is no shard changed the list"
    assert [shard.path for shard in by_folder] == sorted(shard.path for shard in by_folder)
    assert [shard.documents for shard in by_folder] == [12, 13, 14, 15, 16]
    assert all(shard.sha256 == hash_file(folder / shard.path) for shard in by_folder)
    zst = list_shards(str(folder), files="*.zst")
    assert zst == list_shards(f"{folder}/*.zst") == [by_folder[0], by_folder[4]], "a glob lists something else"
    assert list_shards(str(folder / "part_1.jsonl")) == [by_folder[1]]


def test_what_is_not_there_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegrowError, match=r"empty.*no \.jsonl"):
        list_shards(str(tmp_path / "empty"))
    with pytest.raises(RegrowError, match="no such file or folder"):
        list_shards(str(tmp_path / "gone"))


def test_listing_meets_the_damage(corpus, tmp_path):
    path = tmp_path / "corpus" / "part_0.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RegrowError, match=r"part_0\.jsonl\.zst: damaged"):
        list_shards(str(tmp_path / "corpus"))


def test_a_manifest_survives_json_and_its_hash_names_its_content(corpus):
    corpus = [replace(shard, exclude_domains=("RedPajamaBook",)) for shard in corpus]
    manifest = build_manifest(corpus[1:], corpus[:1])
    assert read_manifest(json.loads(json.dumps(manifest))) == (corpus[1:], corpus[:1])
    assert manifest["hash"] == build_manifest(corpus[1:], corpus[:1])["hash"]
    assert manifest["hash"] != build_manifest(corpus[2:], corpus[:1])["hash"], "another corpus has the same hash"


def test_a_shard_in_two_places_is_refused(corpus, tmp_path):
    twin = tmp_path / "elsewhere" / "copy.jsonl"
    twin.parent.mkdir()
    twin.write_bytes((tmp_path / "corpus" / "part_1.jsonl").read_bytes())
    copies = list_shards(str(twin.parent))
    with pytest.raises(RegrowError, match=r"part_1\.jsonl and .*copy\.jsonl are the same file"):
        build_manifest([*corpus, *copies], [])
    with pytest.raises(RegrowError, match=r"held-out shard .*copy\.jsonl is also in the corpus \(.*part_1\.jsonl\)"):
        build_manifest(corpus, copies)
    # Small files of a hub data set come without a sha256: there the name tells.
    hub = replace(corpus[0], place="owner/name", revision="abc", sha256=None, documents=None)
    with pytest.raises(RegrowError, match=r"held-out shard owner/name/part_0.* is also in the corpus"):
        build_manifest([hub], [hub])
    with pytest.raises(RegrowError, match=r"owner/name/part_0.* same file"):
        build_manifest([hub, hub], [])


def test_only_the_manifest_s_bytes_are_delivered(corpus, tmp_path):
    shard = corpus[1]
    path = fetch(shard, tmp_path / "cache")
    assert path == tmp_path / "corpus" / "part_1.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(RegrowError, match=rf"part_1\.jsonl: {len(data) - 1} bytes, the manifest says {len(data)}"):
        fetch(shard, tmp_path / "cache")
    path.write_bytes(data.replace(b"the", b"teh", 1))
    with pytest.raises(RegrowError, match=r"part_1\.jsonl: its bytes are not those of the manifest"):
        fetch(shard, tmp_path / "cache")
    path.unlink()
    with pytest.raises(RegrowError, match=r"part_1\.jsonl: missing"):
        fetch(shard, tmp_path / "cache")
