"""Reading shards: every format gives the same texts, and every kind of damage is refused by the shard's name."""

from __future__ import annotations

import json

import pytest
import zstandard

from pipeline.data.documents import count_documents, format_of, read_documents
from pipeline.run import RegrowError


def read(path):
    return list(read_documents(path, format_of(path.name)))


def test_every_format_reads_the_same(shard_of, texts):
    documents = [*texts[:300], "line\nbreak \u2028 and \x85", "日本語 🌱", ""]
    expected = list(enumerate(documents))
    for ending in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet"):
        assert read(shard_of(f"shard.{ending}", documents)) == expected, f"{ending} gives other documents"
    assert format_of("README.md") is None and format_of("x.json") is None


def test_frames_follow_each_other_and_blank_lines_do_not_count(shard_of, texts):
    one, two = (shard_of(f"{name}.jsonl.zst", texts[first : first + 50]) for name, first in (("a", 0), ("b", 50)))
    joined = one.with_name("joined.jsonl.zst")
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    assert read(joined) == list(enumerate(texts[:100])), "a second zstd frame was not read whole"
    blank = one.with_name("blank.jsonl")
    blank.write_text('{"text": "a"}\n\n  \n{"text": "b"}')
    assert read(blank) == [(0, "a"), (1, "b")], "blank lines, or a last line without its end, moved the indices"


def test_excluded_domains_keep_the_numbers_of_the_others(shard_of):
    domains = ["RedPajamaBook", "RedPajamaC4", None, "RedPajamaBook", "RedPajamaArXiv"]
    records = [{"text": f"t{i}", "meta": {"redpajama_set_name": name}} for i, name in enumerate(domains)]
    records.append({"text": "t5", "meta": None})
    path = shard_of("domains.jsonl", records)
    kept = list(read_documents(path, "jsonl", exclude_domains=("RedPajamaBook", "RedPajamaArXiv")))
    assert kept == [(1, "t1"), (2, "t2"), (5, "t5")], "the wrong documents were left out, or the rest renumbered"
    assert list(read_documents(path, "jsonl", first=4)) == [(4, "t4"), (5, "t5")], "reading from a document on"
    assert count_documents(path, "jsonl", "text") == 6


def cut_at_block_end(data: bytes) -> int:
    """Length of a zstd frame up to the end of its first block: a cut that a careless reader takes for an end."""
    header = zstandard.frame_header_size(data)
    block = int.from_bytes(data[header : header + 3], "little")
    assert not block & 1, "the frame needs more than one block for this test"
    return header + 3 + (block >> 3)


@pytest.mark.parametrize("ending", ["jsonl.zst", "jsonl.gz", "parquet"])
def test_a_flipped_bit_and_a_cut_are_refused(shard_of, texts, ending):
    good = shard_of(f"good.{ending}", texts[:400])
    data = good.read_bytes()
    cuts = {"cut at a byte": len(data) * 2 // 3, "cut before its last byte": len(data) - 1}
    if ending == "jsonl.zst":
        cuts["cut at a block's end"] = cut_at_block_end(data)
    damaged = {name: data[:stop] for name, stop in cuts.items()}
    middle = len(data) // 2
    damaged["bit flipped"] = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    for name, content in damaged.items():
        path = good.with_name(f"damaged.{ending}")
        path.write_bytes(content)
        if ending == "parquet" and name == "bit flipped":
            continue  # parquet has no checksum by default; the manifest's sha256 finds it (test_shards)
        with pytest.raises(RegrowError, match=r"shard .*damaged\.\S+: damaged after document -?\d+"):
            read(path)
            pytest.fail(f"{ending} {name}: read without an error")


def test_bad_records_are_refused_by_shard_and_document(shard_of):
    bad_json = shard_of("bad.jsonl", ["a", "b"])
    bad_json.write_text('{"text": "a"}\n{"text": "b"\n{"text": "c"}\n')
    with pytest.raises(RegrowError, match=r"bad\.jsonl: damaged after document 0"):
        read(bad_json)
    bad_json.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(RegrowError, match=r"bad\.jsonl: damaged after document 0.*utf-8"):
        read(bad_json)
    for record in ({"content": "x"}, {"text": None}, ["text"], 7):
        path = shard_of("key.jsonl", ["a", record])
        with pytest.raises(RegrowError, match=r"key\.jsonl: document 1 has no text under the key 'text'"):
            read(path)
    other = shard_of("other.jsonl", [{"content": "x"}])
    assert list(read_documents(other, "jsonl", text_key="content")) == [(0, "x")]
    for ending in ("jsonl", "jsonl.zst", "jsonl.gz"):
        empty = shard_of(f"empty.{ending}", [])
        with pytest.raises(RegrowError, match="empty, not one document"):
            read(empty)
        empty.write_bytes(b"")
        with pytest.raises(RegrowError, match="empty"):
            read(empty)
    with pytest.raises(RegrowError, match=r"gone\.jsonl"):
        read(other.with_name("gone.jsonl"))


def test_a_document_larger_than_a_read_is_whole(shard_of):
    text = "".join(json.dumps(i) for i in range(500_000))
    for ending in ("jsonl", "jsonl.zst"):
        assert read(shard_of(f"large.{ending}", [text, "after"])) == [(0, text), (1, "after")], ending
