"""Tokenised shards: what was written comes back, from any document on at the same cost, and webdataset reads it."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import time

import numpy as np
import pytest

from pipeline.data.damage import DamagedShard
from pipeline.data.formats import tokenised
from pipeline.data.formats.tokenised import (
    about_tokenised,
    check_tokenised,
    is_tokenised,
    read_tokenised,
    write_tokenised,
)
from pipeline.errors import RegrowError
from pipeline.files import hash_file

ABOUT = {"vocabulary": 49152, "tokenizer": "abc", "separator": 2, "bos": None}


def documents_of(number: int, vocabulary: int = 49152, seed: int = 0) -> list[list[int]]:
    """Documents of 0 to 300 ids; every seventh is one that was left out."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, vocabulary, 0 if i % 7 == 3 else draw.integers(1, 300)).tolist() for i in range(number)]


def as_lists(path, first=0):
    return [(index, ids.tolist()) for index, ids in read_tokenised(path, first)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 1,000 tokens, so that a small file has many."""
    monkeypatch.setattr(tokenised, "BLOCK", 1000)


@pytest.mark.parametrize(("vocabulary", "stored"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_documents_come_back_from_any_one_on(tmp_path, small_blocks, vocabulary, stored):
    documents = documents_of(200, vocabulary)
    documents[5] = [vocabulary - 1, 0]
    documents[6] = [7] * 5000  # longer than a block
    path = tmp_path / "a.tar"
    assert write_tokenised(path, iter(documents), about={"vocabulary": vocabulary}) == 200
    expected = [(index, ids) for index, ids in enumerate(documents) if ids]
    assert as_lists(path) == expected
    for first in (*range(0, 201, 13), 5, 6, 7, 8, 199, 200):
        assert as_lists(path, first) == [item for item in expected if item[0] >= first], f"from document {first} on"
    with pytest.raises(DamagedShard, match="200 documents in it, and document 201 was asked for"):
        as_lists(path, 201)
    ids = next(read_tokenised(path))[1]
    assert ids.dtype == stored and not ids.flags.writeable, "ids are larger than they need be, or can be overwritten"


def test_a_shard_says_what_it_holds(tmp_path, small_blocks, shard_of):
    documents = documents_of(100)
    path = tmp_path / "a.tar"
    write_tokenised(path, documents, about=ABOUT)
    assert about_tokenised(path) == {**ABOUT, "documents": 100, "tokens": sum(map(len, documents))}
    assert check_tokenised(path) == about_tokenised(path)
    others = [shard_of("text.tar", ["a"]), shard_of("a.jsonl", ["a"]), shard_of("list.tar", [[1]])]
    assert [is_tokenised(other) for other in (path, *others)] == [True, False, False, False]


def test_the_same_documents_give_the_same_bytes(tmp_path, small_blocks):
    documents = documents_of(50)
    write_tokenised(tmp_path / "a.tar", documents, about=ABOUT)
    time.sleep(1.1)  # longer than a tar's clock takes to move on
    write_tokenised(tmp_path / "b.tar", (np.array(ids, dtype=np.int32) for ids in documents), about=ABOUT)
    assert hash_file(tmp_path / "a.tar") == hash_file(tmp_path / "b.tar")


def test_webdataset_reads_the_file(tmp_path, small_blocks):
    import webdataset

    documents = documents_of(100)
    path = tmp_path / "a.tar"
    write_tokenised(path, documents, about=ABOUT)
    blocks = list(
        webdataset.WebDataset([str(path)], nodesplitter=None, workersplitter=None, shardshuffle=False).decode()
    )
    assert len(blocks) > 5 and [block["json"]["block"] for block in blocks] == list(range(len(blocks)))
    read = [
        block["tokens.npy"][begin:end].tolist()
        for block in blocks
        for begin, end in itertools.pairwise(block["offsets.npy"])
    ]
    assert read == documents, "webdataset reads other documents"


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, small_blocks):
    path = tmp_path / "a.tar"
    for bad in (-1, 49152):
        with pytest.raises(RegrowError, match=rf"document 41 has token id {bad}, and the vocabulary has 49152"):
            write_tokenised(path, [*documents_of(40), [], [1, bad, 2], [3]], about=ABOUT)
    with pytest.raises(RegrowError, match=r"a\.tar: not one document"):
        write_tokenised(path, [], about=ABOUT)
    assert list(tmp_path.iterdir()) == [], "half a file was left behind"


def test_flips_are_seen_in_the_blocks_that_are_entered(tmp_path, small_blocks):
    documents = documents_of(100)
    path = tmp_path / "a.tar"
    write_tokenised(path, documents, about=ABOUT)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        entries = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith("json")]
        member = tar.getmember("000003.tokens.npy")
    begin = member.offset_data + 128
    path.write_bytes(data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :])
    first, behind = entries[3]["first"], entries[4]["first"]
    assert as_lists(path, behind) == [(i, ids) for i, ids in enumerate(documents) if ids and i >= behind]
    seen = []
    with pytest.raises(
        DamagedShard,
        match=rf"a\.tar: damaged at document {first}: block 3: tokens\.npy at byte "
        rf"{member.offset_data} is not what was written",
    ):
        for index, _ in read_tokenised(path):
            seen.append(index)
    assert seen == [i for i in range(first) if documents[i]], "documents before the damage were lost"
    assert about_tokenised(path)["documents"] == 100, "the arrays are read where they need not be"
    with pytest.raises(DamagedShard):
        check_tokenised(path)
    flipped = data.replace(b'"tokenizer": "abc"', b'"tokenizer": "abd"', 1)
    path.write_bytes(flipped)
    with pytest.raises(DamagedShard, match=r"000000\.json at byte 0 is not what was written"):
        about_tokenised(path)


def test_blocks_that_are_missing_or_moved_are_seen(tmp_path, small_blocks):
    documents = documents_of(60)
    path = tmp_path / "a.tar"
    write_tokenised(path, documents, about=ABOUT)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        contents = [(member.name, tar.extractfile(member).read()) for member in tar]

    def rewrite(kept):
        with tarfile.open(path, "w") as tar:
            for name, content in kept:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    renamed = [
        (f"{(number - 3) // 3:06d}{name[6:]}", content)
        for number, (name, content) in enumerate(contents)
        if number >= 3
    ]
    for kept, reason in (
        (contents[:6] + contents[9:], r"'000003\.json', 000002\.json is due"),
        (contents[:8], "block 2, at byte .* is not whole"),
        (renamed, "block 0: its json at byte 0 is of another block"),
    ):
        rewrite(kept)
        with pytest.raises(DamagedShard, match=reason):
            as_lists(path)
    path.write_bytes(data.rstrip(b"\0"))
    with pytest.raises(DamagedShard, match=r"a\.tar: damaged at document 0: the archive is cut"):
        about_tokenised(path)
    path.unlink()
    for look in (as_lists, about_tokenised, is_tokenised):
        with pytest.raises(DamagedShard, match=r"a\.tar: missing"):
            look(path)


def test_another_format_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenised, "FORMAT", 2)
    write_tokenised(tmp_path / "a.tar", [[1]], about=ABOUT)
    monkeypatch.undo()
    with pytest.raises(RegrowError, match=r"a\.tar: tokenised in format 2, this is 1") as caught:
        as_lists(tmp_path / "a.tar")
    assert not isinstance(caught.value, DamagedShard), "a newer file would be skipped as damaged"


def test_reading_is_fast_and_its_cost_does_not_grow_with_the_first_document(tmp_path):
    """10 blocks of 100,000 documents of 100 tokens; the last one is reached as soon as the second."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 49152, 10_000_000).reshape(-1, 100)
    path = tmp_path / "a.tar"
    write_tokenised(path, ids, about=ABOUT)

    def seconds(call):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times)

    def read_all():
        assert sum(map(len, (tokens for _, tokens in read_tokenised(path)))) == ids.size

    speed = ids.size / seconds(read_all)
    assert speed > 10e6, f"{speed / 1e6:.0f} M tokens/s"
    early, late = (seconds(lambda first=first: next(read_tokenised(path, first))) for first in (1, 99_000))
    assert late < 3 * early + 0.01, f"document 1 after {early * 1e3:.1f} ms, document 99,000 after {late * 1e3:.1f} ms"
    print(f"{speed / 1e6:.0f} M tokens/s; first document after {early * 1e3:.1f} and {late * 1e3:.1f} ms")
