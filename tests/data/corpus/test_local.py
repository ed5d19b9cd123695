"""The files of a local source: named in order, decoded once, and damage told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.corpus.local import natural
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.progress import Progress
from pipeline.errors import RegrowError
from pipeline.files import hash_file
from pipeline.run import Run
from tests.data.corpora import listing_of


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


def test_what_macos_puts_beside_a_file_is_passed_over(corpus, tmp_path):
    for name in ("._part_1.jsonl", "._.DS_Store", "._part_0.jsonl.zst"):
        (tmp_path / "corpus" / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    folder = str(tmp_path / "corpus")
    assert listing_of(folder).shards == listing_of(folder, files="*part_*").shards == corpus
    named = listing_of(folder, files="*part_1.jsonl", format="jsonl")
    assert [shard.path for shard in named.shards] == ["part_1.jsonl"]


def test_a_shard_whose_name_is_not_utf_8_is_refused_and_another_file_passed_over(corpus, tmp_path):
    folder = os.fsencode(tmp_path / "corpus")
    Path(os.fsdecode(folder + b"/caf\xe9.txt")).touch()
    assert listing_of(str(tmp_path / "corpus")).shards == corpus
    Path(os.fsdecode(folder + b"/caf\xe9.jsonl")).write_text('{"text": "One."}\n')
    with pytest.raises(RegrowError, match=r"not UTF-8 \(b'caf\\xe9\.jsonl'\); rename it") as error:
        listing_of(str(tmp_path / "corpus"))
    str(error.value).encode()


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
