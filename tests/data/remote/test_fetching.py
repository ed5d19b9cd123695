"""Fetching: what comes out of the cache is what the manifest pinned, whatever the server does on the way."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from email.utils import formatdate

import pytest

from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_documents
from pipeline.data.remote.cache import ShardCache
from pipeline.errors import RegrowError
from tests.data.corpora import listing_of
from tests.data.server import COMMIT, SECRET, Server, online


def test_only_the_manifest_s_bytes_of_a_local_shard_are_delivered(corpus, cache, tmp_path):
    shard = corpus[1]
    path = cache.open(shard)
    assert path == tmp_path / "corpus" / "part_1.jsonl"
    cache.ahead(shard)
    cache.drop(shard)
    assert path.exists(), "a local shard was deleted"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(
        DamagedShard, match=rf"part_1\.jsonl: {len(data) - 1} bytes, the manifest says {len(data)}; .*put back the file"
    ):
        cache.open(shard)
    path.write_bytes(data.replace(b"the", b"teh", 1))
    with pytest.raises(
        DamagedShard, match=r"part_1\.jsonl: its bytes are not those of the manifest .*: put back the file .*new run"
    ):
        cache.open(shard)
    path.unlink()
    with pytest.raises(RegrowError, match=r"part_1\.jsonl: missing") as caught:
        cache.open(shard)
    assert not isinstance(caught.value, DamagedShard), "a disk that is not mounted counts as damage, to be skipped"


FAULTS = {
    "429": "the server answered 429 (too many requests)",
    "408": "the server answered 408 (time-out)",
    "500": "the server answered 500 (server error)",
    "503": "the server answered 503 (server error)",
    "stall": "the server stalled",
    "cut": "the answer was cut short",
    "hang up": "ServerDisconnectedError",
}


def test_passing_faults_are_waited_out_and_said(remote, server, cache, said, right):
    for number, faults in enumerate([["429", "stall", "cut"], ["500", "hang up"], ["503", "408"]]):
        shard = remote(number)
        for fault in faults:
            # A connection that was kept open and is found closed is opened again by the client itself.
            server.fail("/c/" + shard.path.partition("?")[0], *[fault] * (1 + (fault == "hang up")))
        said.clear()
        path = cache.open(shard)
        assert right(path, shard), f"after {faults} the bytes are others"
        assert len(said) == len(faults), f"{faults}: not one message a wait: {said}"
        for attempt, (fault, line) in enumerate(zip(faults, said, strict=True), start=2):
            assert line.startswith(f"shard {shard.name}: {FAULTS[fault]}"), f"{fault}: {line}"
            assert "; waiting 0.0" in line and line.endswith(f"s, then attempt {attempt} of 5"), line
        assert SECRET not in "".join(said), "a signed query stands in a message"
    assert not list(cache.folder.glob("*.part")), "a failed attempt left its temporary file"


def test_a_server_s_own_wait_is_kept(remote, server, cache, said):
    shard = remote(1)
    server.fail("/c/part_1.jsonl", "429:1")
    begin = time.monotonic()
    cache.open(shard)
    assert 1 <= time.monotonic() - begin < 3, "Retry-After was not kept"
    assert "waiting 1" in said[0], said
    server.fail("/c/part_1.jsonl", f"503:{formatdate(time.time() + 2, usegmt=True)}")
    cache.drop(shard)
    begin = time.monotonic()
    cache.open(shard)
    assert 0.9 <= time.monotonic() - begin < 4, "Retry-After as a date was not kept"


def test_waits_grow_and_end(remote, server, tmp_path, said):
    shard = remote(1)
    cache = ShardCache(tmp_path / "cache", attempts=4, wait=0.02, stalled=1, say=said.append)
    server.fail("/c/part_1.jsonl", *["503"] * 9)
    with pytest.raises(RegrowError, match=r"given up after 4 attempts \(the server answered 503") as caught:
        cache.open(shard)
    waits = [float(line.partition("waiting ")[2].split()[0]) for line in said]
    assert len(waits) == 3, said
    for wait, middle in zip(waits, (0.02, 0.04, 0.08), strict=True):
        assert 0.5 * middle <= wait <= 1.5 * middle, f"waits {waits} do not double"
    assert server.bodies("/c/part_1.jsonl") == 4 and SECRET not in str(caught.value)
    assert list(cache.folder.iterdir()) == []


def test_a_refusal_is_an_error_at_once(remote, server, cache, said):
    shard = remote(1)
    for status, advice in (("401", "HF_TOKEN"), ("403", "credentials"), ("404", "check the name"), ("410", "")):
        server.fail("/c/part_1.jsonl", status)
        with pytest.raises(RegrowError, match=rf"part_1\.jsonl: the server answered {status} .*{advice}") as caught:
            cache.open(shard)
        assert said == [], f"{status} was waited for"
        assert SECRET not in str(caught.value) and caught.value.__suppress_context__, "a traceback would show the query"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RegrowError, match=rf"{nobody}/c/part_1\.jsonl: given up after 5 attempts \(ConnectionRefused"):
        cache.open(replace(shard, place=f"{nobody}/c"))
    assert len(said) == 4 and SECRET not in "".join(said), "a server that is away was not waited for"


def test_wrong_bytes_are_fetched_once_more_and_then_refused(remote, server, cache, said, right):
    shard = remote(0)
    path = "/c/part_0.jsonl.zst"
    server.fail(path, "flip")
    assert right(cache.open(shard), shard), "one flipped bit on the way was not put right"
    assert server.bodies(path) == 2 and "sha256 differs); fetching it once more" in said[0], said
    cache.drop(shard)
    server.fail(path, "flip", "500", "flip")
    with pytest.raises(DamagedShard, match=r"part_0\.jsonl\.zst: .*sha256 differs.*twice"):
        cache.open(shard)
    assert server.bodies(path) == 5 and list(cache.folder.iterdir()) == [], "wrong bytes were kept, or asked for again"


def test_without_a_published_hash_the_first_fetch_holds(remote, server, tmp_path, cache, right):
    shard = remote(1, hashed=False)
    digest = hashlib.sha256(cache.open(shard).read_bytes()).hexdigest()
    cache.drop(shard)
    assert [path.read_text().strip() for path in cache.folder.iterdir()] == [digest], "the first fetch is forgotten"
    server.fail("/c/part_1.jsonl", "flip", "flip")
    later = ShardCache(tmp_path / "cache", attempts=2, wait=0.001, say=lambda line: None)
    with pytest.raises(DamagedShard, match=r"part_1\.jsonl: its bytes are not those of its first fetch, twice"):
        later.open(shard)
    assert right(later.open(shard), shard)


def test_a_file_that_changed_on_the_server_is_refused(remote, server, cache):
    shard = remote(1)
    server.etags["/c/part_1.jsonl"] = '"another"'
    with pytest.raises(RegrowError, match=r'part_1\.jsonl: the file on the server.*ETag was "\w+", is "another"'):
        cache.open(shard)
    del server.etags["/c/part_1.jsonl"]
    server.files["/c/part_1.jsonl"] += b"\n"
    with pytest.raises(RegrowError, match=rf"size was {shard.bytes}, is {shard.bytes + 1}"):
        cache.open(shard)
    assert server.bodies("/c/part_1.jsonl") == 0, "another file was downloaded before it was refused"


def test_row_groups_of_remote_parquet_come_one_at_a_time(server, parquet, texts, cache, said):
    server.files["/p/rows.parquet"] = parquet.read_bytes()
    shard = listing_of(f"{server.address}/p/rows.parquet", exclude_domains=["RedPajamaBook"]).shards[0]
    server.requests.clear()
    server.fail("/p/rows.parquet", "503", "cut")
    read = []
    for group in range(3):
        path = cache.open(shard, group)
        read.append([text for _, text in read_documents(path, "parquet", "text", shard.exclude_domains)])
        assert path.stat().st_size < shard.bytes / 3, "a row group brings the columns that nobody reads"
    assert [len(group) for group in read] == [30, 30, 20] and [*read[0], *read[1], *read[2]] == texts[:80]
    assert len(said) == 2 and "row group 0" in said[0], said
    asked = [headers.get("Range") for method, _, headers in server.requests if method == "GET"]
    assert None not in asked and len(asked) == 2 + 1 + 3, f"the footer once, each group once: {asked}"
    cache.drop(shard, 1)
    assert len([path for path in cache.folder.iterdir() if path.suffix == ".parquet"]) == 2
    server.fail("/p/rows.parquet", "flip")
    again = [text for _, text in read_documents(cache.open(shard, 1), "parquet")]
    assert again == read[1] and "fetching it once more" in said[-1], "a flipped bit in a row group went through"
    cache.drop(shard, 1)
    server.fail("/p/rows.parquet", "flip", "flip")
    with pytest.raises(DamagedShard, match=r"rows\.parquet, row group 1: .*twice"):
        cache.open(shard, 1)


def test_other_file_systems_go_the_same_way(corpus, cache, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for shard in corpus:
        memory.pipe_file(f"/m/{shard.path}", (tmp_path / "corpus" / shard.path).read_bytes())
    shards = listing_of("memory://m/*").shards
    for shard, local in zip(shards, corpus, strict=True):
        path = cache.open(shard)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == local.sha256
        cache.drop(shard)
    assert len(list(read_documents(cache.open(shards[2], 0), "parquet"))) == 14
    memory.rm("/m", recursive=True)
    with pytest.raises(RegrowError, match=r"part_0\.jsonl\.zst: the server answered 404"):
        cache.open(shards[0])


HUB = """
import json, sys
from pathlib import Path
from pipeline.data.remote.cache import ShardCache
from pipeline.data.corpus.listing import list_source
from pipeline.data.shards import read_manifest
from pipeline.data.sources import TextSource
from pipeline.errors import RegrowError
said = []
cache = ShardCache(Path(sys.argv[1]), attempts=3, wait=0.01, stalled=5, say=said.append)
shards = list_source(TextSource("owner/set")).shards
got = {}
for shard in shards:
    for group in range(len(shard.groups or [None])):
        group = group if shard.groups else None
        try:
            path = cache.open(shard, group)
            got[f"{shard.path}:{group}"] = path.read_bytes().hex() if group is None else path.stat().st_size
        except RegrowError as error:
            got[f"{shard.path}:{group}"] = f"{type(error).__name__}: {error}"
print(json.dumps({"got": got, "said": said}))
"""


def test_shards_of_the_hub_are_fetched_at_their_commit(server, parquet, corpus, tmp_path):
    storage = Server()
    server.large, server.token = storage, f"hf_{SECRET}"
    local = {shard.path: (tmp_path / "corpus" / shard.path).read_bytes() for shard in corpus[:2]}
    small = b'{"text": "small"}\n'
    server.data_sets["owner/set"] = {
        **local,
        "rows.parquet": parquet.read_bytes(),
        "small.jsonl": small,
        "spoilt.jsonl": small,
    }
    resolve = f"/datasets/owner/set/resolve/{COMMIT}"
    server.fail(f"{resolve}/part_0.jsonl.zst", "429:0")
    server.fail(f"{resolve}/spoilt.jsonl", "flip", "flip")
    storage.fail("/large/part_1.jsonl", "503", "cut")
    environment = {**os.environ, **online(server), "HF_TOKEN": f"hf_{SECRET}"}
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(tmp_path / "cache")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    storage.close()
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    for name, data in {**local, "small.jsonl": small}.items():
        assert answer["got"][f"{name}:None"] == data.hex(), f"{name}: {answer['got'][f'{name}:None'][:200]}"
    assert all(answer["got"][f"rows.parquet:{group}"] > 1000 for group in range(3)), answer["got"]
    assert "DamagedShard: shard owner/set/spoilt.jsonl: " in answer["got"]["spoilt.jsonl:None"], (
        "a small file's blob id"
    )
    assert sum("waiting" in line for line in answer["said"]) == 3, answer["said"]
    sent = {headers.get("Authorization") for _, _, headers in storage.requests}
    assert storage.requests and sent == {None}, "the token was sent on to another host"
    assert all(COMMIT in path for _, path, _ in server.requests if "/resolve/" in path), "not at the pinned commit"
    assert SECRET not in done.stdout + done.stderr and "Signature" not in done.stdout + done.stderr
