"""Listing a source: whatever it is, its shards are pinned, in one order, once, and damage is met here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.corpus.local import natural
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.progress import Progress
from pipeline.data.remote import catalogue
from pipeline.data.remote.space import needed_space
from pipeline.data.shards import build_manifest, read_manifest
from pipeline.errors import RegrowError
from pipeline.files import hash_file
from pipeline.run import Run
from tests.data.corpora import listing_of
from tests.data.server import COMMIT, SECRET, Server, online


def test_a_folder_a_glob_and_a_file_list_the_same_shards(corpus, tmp_path):
    folder = tmp_path / "corpus"
    (folder / "notes.txt").write_text("no shard")
    listing = listing_of(str(folder))
    assert listing.shards == corpus, "a file that is no shard changed the list"
    assert [shard.documents for shard in corpus] == [12, 13, 14, 15, 16]
    assert listing.census.documents == 70 and listing.census.domains == {"RedPajamaWikipedia": 70}
    assert listing.census.characters > 0 and listing.skipped == []
    assert all(shard.sha256 == hash_file(folder / shard.path) for shard in corpus)
    assert [shard.groups for shard in corpus] == [None, None, (14,), None, None]
    zipped = listing_of(str(folder), files="*.gz").shards
    assert zipped == listing_of(f"{folder}/*.gz").shards == [corpus[3], corpus[4]], "a glob lists something else"
    assert listing_of(str(folder / "part_1.jsonl")).shards == [corpus[1]]
    second = listing_of(str(folder), number=3, text_key="text", exclude_domains=["RedPajamaBook"]).shards[0]
    assert (second.source, second.kind, second.exclude_domains) == (3, "local", ("RedPajamaBook",))


def test_the_order_is_natural_and_stable(shard_of, texts, tmp_path):
    names = ["chunk10/example_train_2", "chunk2/example_train_10", "chunk2/example_train_9", "chunk1/example_train_100"]
    for number, name in enumerate(names):
        shard_of(f"{name}.jsonl", texts[number : number + 1])
    listed = [shard.path.removesuffix(".jsonl") for shard in listing_of(str(tmp_path / "corpus")).shards]
    assert listed == [names[3], names[2], names[1], names[0]], "chunk10 stands before chunk2, or 10 before 9"
    assert sorted(["a1", "a01", "1a", "a", "10", "9b"], key=natural) == ["1a", "9b", "10", "a", "a01", "a1"]


def test_linked_folders_are_listed_and_lead_into_no_loop(shard_of, texts, tmp_path):
    for number, name in enumerate(["a/1.jsonl", "b/2.jsonl", "../disk/x/3.jsonl", "../disk/4.jsonl"]):
        shard_of(name, texts[number : number + 1])
    root = tmp_path / "corpus"
    before = [shard.path for shard in listing_of(str(root)).shards]
    assert before == ["a/1.jsonl", "b/2.jsonl"]
    for link, target in (
        ("a/up", root),
        ("0_other_name", root / "b"),
        ("c10", tmp_path / "disk/x"),
        ("c2", tmp_path / "disk"),
        ("a/gone", tmp_path / "gone"),
    ):
        (root / link).symlink_to(target, target_is_directory=True)
    (tmp_path / "disk/x/back").symlink_to(tmp_path, target_is_directory=True)
    (root / "file.jsonl").symlink_to(shard_of("../5.jsonl", texts[4:5]))
    found = [shard.path for shard in listing_of(str(root)).shards]
    assert found[:2] == before and found[-1] == "file.jsonl", "a link changed the names or the order of what was there"
    assert {Path(root / name).resolve().name for name in found} == {f"{n}.jsonl" for n in (1, 2, 3, 4, 5)}
    assert found[2:-1] == ["c2/4.jsonl", "c2/x/3.jsonl", "c2/x/back/5.jsonl"], "a folder was entered twice, or not"
    (tmp_path / "linked").symlink_to(root, target_is_directory=True)
    assert [shard.path for shard in listing_of(str(tmp_path / "linked"), files="[ab]/*").shards] == before


def test_what_is_not_there_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegrowError, match=r"empty.*no intact \.jsonl"):
        listing_of(str(tmp_path / "empty"))
    with pytest.raises(RegrowError, match="no such file or folder"):
        listing_of(str(tmp_path / "gone"))
    with pytest.raises(RegrowError, match=r"nosuch://x/y\.tar.*nosuch"):
        listing_of("nosuch://x/y.tar")


@pytest.mark.parametrize("text", ["a.tar", "a.jsonl.zst", "a.parquet"])
def test_text_beside_token_ids_is_refused_before_anything_is_decoded(shard_of, texts, tmp_path, text):
    """The ids may be those of the same text: tokenised ahead into the folder of the corpus."""
    shard_of(text, texts[:3])
    shard_of("c.jsonl", texts[3:6])
    write_tokenised(tmp_path / "corpus" / "ids" / "b.tar", [[1, 2, 3], [4]], about={"vocabulary": 10})
    said: list[str] = []
    with pytest.raises(RegrowError, match=rf"corpus' mixes text \({text}\) and token ids \(ids/b\.tar\)") as caught:
        listing_of(str(tmp_path / "corpus"), on_damage="skip", say=said.append)
    assert "data.tokenised outside" in str(caught.value) and "two entries of data.sources" in str(caught.value)
    assert said == [], f"files were decoded before the refusal: {said}"

    ids, texts_alone = (listing_of(str(tmp_path / "corpus"), files=files) for files in ("ids/*", "[ac].*"))
    assert [(shard.format, shard.documents) for shard in ids.shards] == [("tokenised", 2)]
    assert (ids.census.documents, ids.census.tokens) == (2, 4)
    assert [shard.documents for shard in texts_alone.shards] == [3, 3] and texts_alone.census.tokens is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:300],
        lambda data: data[:700],
        lambda data: b"X" + data[1:],
        lambda data: bytes(len(data)),
        lambda data: data.replace(b'"tokenised"', b'"tokenisee"'),
        lambda data: data.replace(b'"tokenised"', b'\0tokenised"'),
    ],
    ids=["empty", "cut in a header", "cut in the json", "flip in a header", "zeros", "flip in a key", "no json"],
)
def test_a_damaged_tar_among_token_ids_is_damage_and_no_text(tmp_path, change):
    for name in "abc":
        write_tokenised(tmp_path / f"{name}.tar", [[1, 2, 3], [4]], about={"vocabulary": 10})
    path = tmp_path / "b.tar"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedShard, match=r"b\.tar"):
        listing_of(str(tmp_path))
    listing = listing_of(str(tmp_path), on_damage="skip")
    assert [(shard.path, shard.format) for shard in listing.shards] == [("a.tar", "tokenised"), ("c.tar", "tokenised")]
    assert [entry["shard"] for entry in listing.skipped] == [str(path)]


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


def test_a_parquet_file_without_a_row_is_left_out_as_what_it_is(shard_of, texts, tmp_path):
    import pyarrow
    import pyarrow.parquet

    shard_of("a.parquet", texts[:3])
    empty = tmp_path / "corpus" / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), empty)
    said: list[str] = []
    listing = listing_of(str(tmp_path / "corpus"), say=said.append)
    reason = f"shard {empty}: a whole parquet file without a row"
    assert [shard.path for shard in listing.shards] == ["a.parquet"] and f"skipped: {reason}" in said
    assert listing.skipped == [{"shard": str(empty), "reason": reason}]


def test_a_repair_counts_also_where_size_and_time_stay(shard_of, texts, tmp_path):
    path = shard_of("a.jsonl", texts[:5])
    shard_of("b.jsonl", texts[5:9])
    good, state, run = path.read_bytes(), path.stat(), Run(tmp_path / "run")
    for data, expected in ((b"X" + good[1:], ["b.jsonl"]), (good, ["a.jsonl", "b.jsonl"])):
        path.write_bytes(data)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        run.hash_of(path)  # As stage data does for its fingerprint; it is remembered by size and time.
        with Progress(tmp_path / "progress.jsonl") as done:
            listing = listing_of(str(path.parent), on_damage="skip", done=done, hash_of=run.hash_of)
        assert [shard.path for shard in listing.shards] == expected
    assert listing.shards[0].sha256 == hash_file(path), "the manifest would hold the hash of the damaged file"


LISTER = """
import sys
from pathlib import Path
from pipeline.data.corpus.listing import list_source
from pipeline.data.progress import Progress
from pipeline.data.sources import TextSource
def say(line):
    print(line, flush=True)
    if line.startswith("shard 4 "):
        sys.stdin.read()  # Until killed.
with Progress(Path(sys.argv[2])) as done:
    list_source(TextSource(sys.argv[1], on_damage="skip"), done=done, say=say)
"""


def test_a_killed_listing_goes_on_where_it_was(corpus, shard_of, texts, tmp_path):
    folder, kept = tmp_path / "corpus", tmp_path / "progress" / "shards.jsonl"
    (folder / "part_1.jsonl").write_bytes(b"no json")
    process = subprocess.Popen(
        [sys.executable, "-c", LISTER, str(folder), str(kept)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        for line in process.stdout:
            if line.startswith("shard 4 "):
                break
        process.kill()
    assert len(kept.read_text().splitlines()) == 3, "a finished file was not noted at once"
    # A kill in the middle of a line, and a file that changed since.
    with kept.open("a") as file:
        file.write('{"key": "cut')
    shard_of("part_2.parquet", texts[:7])

    decoded: list[str] = []

    def hash_of(path: Path) -> str:
        decoded.append(path.name)
        return hash_file(path)

    for expected in (["part_2.parquet", "part_3.jsonl.gz", "part_4.tar.gz"], []):
        decoded.clear()
        with Progress(kept) as done:
            listing = listing_of(str(folder), done=done, on_damage="skip", hash_of=hash_of)
        assert decoded == expected, "done work was done again, or a changed file was not looked at"
        fresh = listing_of(str(folder), on_damage="skip")
        assert listing == fresh, "a resumed listing is another than one in a single piece"
        assert [shard.documents for shard in listing.shards] == [12, 7, 15, 16]
    with Progress(kept) as done, pytest.raises(DamagedShard, match=r"part_1\.jsonl"):
        listing_of(str(folder), done=done)


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
