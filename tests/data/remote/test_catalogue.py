"""The catalogue: what servers and the hub say of their files, and of the footers of parquet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.progress import Progress
from pipeline.data.remote import catalogue
from pipeline.data.remote.space import needed_space
from pipeline.data.shards import read_manifest
from pipeline.errors import RegrowError
from tests.data.corpora import listing_of
from tests.data.server import COMMIT, SECRET, Server, online


def test_urls_with_braces_are_pinned_by_size_and_etag(server, corpus, tmp_path):
    for number, shard in enumerate(corpus[:3]):
        server.files[f"/a/shard-{number:06d}.jsonl"] = (tmp_path / "corpus" / shard.path).read_bytes()
    url = f"{server.address}/a/shard-{{000000..000002}}.jsonl?Signature={SECRET}"
    # Faults before the first answer: fsspec asks with HEAD, then with GET.
    for path in ("HEAD /a/shard-000001.jsonl", "/a/shard-000001.jsonl"):
        server.fail(path, "429:0")
    said: list[str] = []
    listing = listing_of(url, wait=0.001, say=said.append)
    assert [shard.path.partition("?")[0] for shard in listing.shards] == [f"shard-00000{n}.jsonl" for n in range(3)]
    assert {shard.place for shard in listing.shards} == {f"{server.address}/a"} and listing.census is None
    for shard, data in zip(listing.shards, server.files.values(), strict=True):
        assert (shard.kind, shard.format, shard.bytes, shard.sha256) == ("url", "jsonl", len(data), None)
        assert shard.etag.startswith('"') and shard.documents is None
    assert any("429 (too many requests); waiting" in line and "attempt 2 of 8" in line for line in said), said
    with pytest.raises(RegrowError, match=r"shard-000003\.jsonl: the server answered 404 \(not there\)") as caught:
        listing_of(url.replace("..000002", "..000003"), wait=0.001)
    assert SECRET not in str(caught.value) + "".join(said), "a signed query stands in a message"


def test_urls_that_were_asked_after_are_not_asked_again(server, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "LINE_AFTER", 2)
    monkeypatch.setattr(catalogue, "AT_ONCE", 1)
    for number in range(5):
        server.files[f"/a/{number}.jsonl"] = b"x" * (number + 1)
    url = f"{server.address}/a/{{0..4}}.jsonl?Signature={SECRET}"
    kept, said = tmp_path / "progress.jsonl", []
    for method in ("HEAD ", ""):
        server.fail(f"{method}/a/4.jsonl", "404", "404")
    with Progress(kept) as done, pytest.raises(RegrowError, match=r"4\.jsonl: the server answered 404"):
        listing_of(url, done=done, say=said.append, wait=0.001)
    assert said == [f"{n} of 5 files asked after at {server.address}/a" for n in (2, 4)]
    assert len(kept.read_text().splitlines()) == 4 and SECRET not in kept.read_text()
    server.requests.clear()
    server.faults.clear()
    with Progress(kept) as done:
        listing = listing_of(url, done=done, wait=0.001)
    assert {path.partition("?")[0] for _, path, _ in server.requests} == {"/a/4.jsonl"}, "answers were asked for again"
    assert listing == listing_of(url, wait=0.001) and [shard.bytes for shard in listing.shards] == [1, 2, 3, 4, 5]
    server.requests.clear()
    with Progress(kept) as done:
        listing_of(url.replace(SECRET, "other"), done=done, wait=0.001)
    assert len({path for _, path, _ in server.requests}) == 5, "another query may be another file"


def test_remote_parquet_without_rows_is_left_out(server, shard_of, texts, tmp_path):
    import pyarrow
    import pyarrow.parquet

    server.files["/p/a.parquet"] = shard_of("a.parquet", texts[:3]).read_bytes()
    for name, tables in (("b", []), ("c", [pyarrow.table({"text": pyarrow.array([], pyarrow.string())})])):
        with pyarrow.parquet.ParquetWriter(tmp_path / name, pyarrow.schema({"text": pyarrow.string()})) as file:
            for table in tables:
                file.write_table(table)
        server.files[f"/p/{name}.parquet"] = (tmp_path / name).read_bytes()
    for name in "bc":
        with pytest.raises(RegrowError, match=r"no intact .* file in it .*1 damaged or empty ones were skipped"):
            listing_of(f"{server.address}/p/{name}.parquet", wait=0.001)
    listing = listing_of(f"{server.address}/p/{{a,b,c}}.parquet", wait=0.001)
    assert all("whole parquet file without a row" in entry["reason"] for entry in listing.skipped)
    assert [shard.groups for shard in listing.shards] == [(3,)] and len(listing.skipped) == 2
    assert needed_space(listing.shards, 1) == 2 * listing.shards[0].bytes


def test_globs_and_folders_where_the_server_can_list(server, corpus, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for shard in corpus:
        data = (tmp_path / "corpus" / shard.path).read_bytes()
        server.files[f"/c/train/{shard.path}"] = data
        memory.pipe_file(f"/c/train/{shard.path}", data)
    server.files["/c/notes.txt"] = b"no shard"
    for base in (f"{server.address}/c", "memory://c"):
        names = [shard.path for shard in corpus]
        every = listing_of(f"{base}/train/*", wait=0.001).shards
        assert [shard.path for shard in every] == names, f"{base}: the glob found others"
        assert [shard.bytes for shard in every] == [shard.bytes for shard in corpus]
        assert every[2].groups == (14,), f"{base}: the footer was not read"
        found = listing_of(f"{base}/", files="train/*.gz", wait=0.001).shards
        assert [shard.path for shard in found] == [names[3], names[4]], f"{base}: the folder holds others"
        with pytest.raises(RegrowError, match="no shard found there"):
            listing_of(f"{base}/*.tar", wait=0.001)
    memory.rm("/c", recursive=True)


def test_row_groups_of_remote_parquet_are_counted_from_the_footer(server, parquet, tmp_path):
    data = parquet.read_bytes()
    server.files["/p/a.parquet"], server.files["/p/b.parquet"] = data, data[:-9] + data[-8:]
    server.fail("/p/a.parquet", "500", "cut")
    said: list[str] = []
    with Progress(tmp_path / "progress.jsonl") as done:
        listing = listing_of(
            f"{server.address}/p/{{a,b}}.parquet", on_damage="skip", done=done, wait=0.001, say=said.append
        )
    assert [(shard.groups, shard.documents) for shard in listing.shards] == [((30, 30, 20), 80)]
    assert "b.parquet" in listing.skipped[0]["reason"] and "footer" in listing.skipped[0]["reason"]
    assert sum("waiting" in line for line in said) == 2, f"a 500 and a cut body cost one wait each: {said}"
    asked = [headers for method, path, headers in server.requests if (method, path) == ("GET", "/p/a.parquet")]
    assert all("Range" in headers for headers in asked), "the whole file was asked for"

    before = server.bodies("/p/a.parquet")
    with Progress(tmp_path / "progress.jsonl") as done:
        again = listing_of(f"{server.address}/p/{{a,b}}.parquet", on_damage="skip", done=done, wait=0.001)
    assert again == listing and server.bodies("/p/a.parquet") == before, "a good footer was read again"

    with pytest.raises(
        RegrowError, match=r"a\.parquet: no column 'body'; .* are there: text, meta\.redpajama_set_name, noise"
    ):
        listing_of(f"{server.address}/p/a.parquet", text_key="body", wait=0.001)
    large = parquet.with_name("large.parquet")
    _write_large(large)
    server.files["/p/large.parquet"] = large.read_bytes()
    server.ranges = False
    shard = listing_of(f"{server.address}/p/large.parquet", wait=0.001).shards[0]
    assert shard.groups is None and shard.documents is None, "a server without ranges cannot deliver row groups"


def _write_large(path: Path) -> None:
    """More than a footer's guess: 200,000 numbers that do not compress."""
    import numpy
    import pyarrow
    import pyarrow.parquet

    numbers = numpy.random.default_rng(0).integers(0, 2**60, 200_000)
    texts = [f"{number:x}" for number in numbers]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)


HUB = """
import json, sys
from dataclasses import asdict
from pipeline.data.corpus.listing import list_source
from pipeline.data.remote.servers import Patience
from pipeline.data.sources import TextSource
from pipeline.errors import RegrowError
for name in sys.argv[2:]:
    said = []
    try:
        shards = list_source(TextSource(name, files=sys.argv[1]), patience=Patience(3, 0.01, said.append)).shards
        print(json.dumps({"shards": [asdict(shard) for shard in shards], "said": said}))
    except RegrowError as error:
        print(json.dumps({"error": str(error), "said": said}))
"""


def hub_listings(server: Server, files: str, *names: str, **environment: str) -> tuple[list[dict], str]:
    """What ``list_source`` says of data sets of the server's hub, in a process (it reads HF_ENDPOINT at import)."""
    environment = {**os.environ, **online(server), **environment}
    done = subprocess.run(
        [sys.executable, "-c", HUB, files, *names], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stdout + done.stderr


def test_a_hub_data_set_is_listed_at_one_commit(server, parquet, texts, tmp_path):
    chunk = "".join(json.dumps({"text": text}) + "\n" for text in texts[:20]).encode()
    server.data_sets["owner/pajama"] = {
        "README.md": b"text",
        **{f"train/chunk{number}/example_train_0.jsonl": chunk + b"\n" * number for number in (1, 2, 10)},
        "train/small.jsonl": b'{"text": "small"}\n',
        "validation/chunk1/example_holdout_0.jsonl": chunk,
        "train/rows.parquet": parquet.read_bytes(),
    }
    server.page = 2
    tree = f"/api/datasets/owner/pajama/tree/{COMMIT}"
    server.fail(tree, "429:0")
    server.fail("/api/datasets/owner/pajama", "503")
    (answer,), output = hub_listings(server, "train/**", "owner/pajama", HF_TOKEN=f"hf_{SECRET}")
    shards, _ = read_manifest({"shards": answer["shards"], "held_out": []})
    assert [shard.path for shard in shards] == [
        "train/chunk1/example_train_0.jsonl",
        "train/chunk2/example_train_0.jsonl",
        "train/chunk10/example_train_0.jsonl",
        "train/rows.parquet",
        "train/small.jsonl",
    ], "a page of the tree is missing, or the order is not natural"
    assert {shard.revision for shard in shards} == {COMMIT}, "the listing is not pinned to a commit"
    assert [shard.sha256 is None for shard in shards] == [False, False, False, False, True]
    assert shards[4].etag is not None, "a small file of the hub is pinned by nothing"
    assert (shards[3].groups, shards[3].documents) == ((30, 30, 20), 80)
    assert any("503" in line and "waiting" in line for line in answer["said"]), "a hub that is down said nothing"
    assert server.bodies(tree) >= 4, "429 on the tree was not waited out, or the pages were not followed"
    assert SECRET not in output, "the token stands in the output"
    sent = {headers.get("Authorization") for _, path, headers in server.requests if path.startswith("/api")}
    assert sent == {f"Bearer hf_{SECRET}"}, "the hub was asked without the token"


def test_a_gated_or_unknown_data_set_is_an_error_at_once(server):
    server.data_sets["owner/gated"] = {"a.jsonl": b'{"text": "a"}\n'}
    server.token = "hf_right"
    (gated, nothing), output = hub_listings(server, "**", "owner/gated", "owner/nothing", HF_TOKEN=f"hf_{SECRET}")
    assert "HF_TOKEN" in gated["error"] and "403" in gated["error"] and not gated["said"], gated
    assert "404" in nothing["error"] and "'owner/nothing'" in nothing["error"] and not nothing["said"], nothing
    asked = [path for _, path, _ in server.requests if "nothing" in path]
    assert len(asked) == 1, f"a data set that is not there was asked for again: {asked}"
    assert SECRET not in output
