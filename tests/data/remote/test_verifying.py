"""Verifying: every way in which a file can be another than the one that was pinned, and what is said of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import pytest

from pipeline.data.damage import DamagedShard
from pipeline.data.remote import verifying
from pipeline.data.remote.verifying import checked_local, require_unchanged, unlike_first, why_wrong
from pipeline.errors import RegrowError
from pipeline.files import hash_file
from tests.data.corpora import flip


def test_a_local_shard_is_the_manifest_s_or_damaged_or_missing(corpus, tmp_path):
    shard = corpus[1]
    path = tmp_path / "corpus" / shard.path
    assert checked_local(shard) == path
    data = flip(shard)
    with pytest.raises(
        DamagedShard, match=rf"shard {path}: its bytes are not those of the manifest \(sha256 differs\)"
    ):
        checked_local(shard)
    assert checked_local(replace(shard, sha256=None)) == path, "without a hash the size alone can tell"
    path.write_bytes(data[:-1])
    with pytest.raises(DamagedShard, match=rf"{len(data) - 1} bytes, the manifest says {len(data)}; it was cut or"):
        checked_local(shard)
    path.write_bytes(data)
    assert checked_local(shard) == path, "a repair does not count"
    path.unlink()
    with pytest.raises(RegrowError, match="missing, though the manifest lists it") as missing:
        checked_local(shard)
    assert not isinstance(missing.value, DamagedShard), "a disk that is not mounted would empty a corpus"


def test_a_file_is_hashed_once_in_a_process_until_it_changes(corpus, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(verifying, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    verifying._digest.cache_clear()
    for _ in range(3):
        checked_local(corpus[1])
    assert len(hashed) == 1, f"one file was hashed {len(hashed)} times"
    os.utime(tmp_path / "corpus" / corpus[1].path, ns=(1, 1))
    checked_local(corpus[1])
    assert len(hashed) == 2, "a file that was touched is taken for what it was"
    verifying._digest.cache_clear()


def test_what_the_server_gives_of_a_url_must_be_what_was_pinned(remote, server):
    shard = remote(1, hashed=False)
    require_unchanged(shard, 5)
    path = f"/c/{shard.path.partition('?')[0]}"
    server.etags[path] = '"other"'
    with pytest.raises(
        RegrowError, match=r"not the manifest's \(ETag was \"\w+\", is \"other\"\); put it back, or redo"
    ):
        require_unchanged(shard, 5)
    server.files[path] += b"\n"
    with pytest.raises(RegrowError, match=rf"\(size was {shard.bytes}, is {shard.bytes + 1}\)"):
        require_unchanged(shard, 5)


def test_a_fetched_file_is_judged_by_the_best_that_is_known(corpus, tmp_path):
    """A published hash, the hub's blob id of a small file, or what the first fetch had."""
    shard, first = replace(corpus[1], kind="url", etag='"e"'), tmp_path / "first.sha256"
    path = tmp_path / "corpus" / shard.path
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    known = {
        "sha256 differs": shard,
        "git blob id differs": replace(shard, sha256=None, kind="hub", etag=blob),
        "not those of its first fetch": replace(shard, sha256=None),
    }
    for shard in known.values():
        assert why_wrong(shard, path, first) is None
    assert first.read_text() == f"{hashlib.sha256(data).hexdigest()}\n", "the first fetch was not noted, or another was"
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for words, shard in known.items():
        assert words in why_wrong(shard, path, first), f"a flip is not seen where {words!r} should tell"
    path.write_bytes(data[:-1])
    for shard in known.values():
        assert why_wrong(shard, path, first) == f"{len(data) - 1} bytes, the manifest says {len(data)}"


def test_the_first_fetch_holds_for_all_later_ones(tmp_path):
    noted = tmp_path / "a.sha256"
    assert unlike_first("a" * 64, noted) is None and unlike_first("a" * 64, noted) is None
    assert "first fetch" in unlike_first("b" * 64, noted)
    assert noted.read_text().strip() == "a" * 64, "a later fetch took the place of the first"
