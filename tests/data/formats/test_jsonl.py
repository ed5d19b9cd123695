"""JSON Lines: frames, lines longer than a read, offsets in messages, and a writer whose files show their damage."""

from __future__ import annotations

import gzip
import io
import json

import pytest
import zstandard

from pipeline.data.damage import BadRecord, DamagedShard
from pipeline.data.formats.documents import check_documents
from pipeline.data.formats.jsonl import read_jsonl, write_jsonl_zst
from pipeline.errors import RegrowError


def read(path, **more):
    return [(index, text) for index, text, _ in read_jsonl(path, **more)]


def lines_of(texts) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_frames_follow_each_other(tmp_path, texts):
    """Hundreds of small frames, cut in the middle of lines, with a frame in between that decoders are to skip."""
    lines = lines_of(texts[:200])
    pieces = [lines[at : at + 1000] for at in range(0, len(lines), 1000)]
    skipped = 0x184D2A53.to_bytes(4, "little") + (7).to_bytes(4, "little") + b"\x28\xb5\x2f\xfd no"
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(piece) for piece in pieces]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join([*frames[:30], skipped, *frames[30:], skipped]))
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, pieces)))
    expected = list(enumerate(texts[:200]))
    assert len(frames) > 100 and read(tmp_path / "a.jsonl.zst") == expected, "zstd frames were not read whole"
    assert read(tmp_path / "a.jsonl.gz") == expected, "gzip members were not read whole"


def test_blank_lines_do_not_count_and_a_last_line_needs_no_end(tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text('{"text": "a"}\n\n  \n{"text": "b"}\r\n\t\n{"text": "c"}')
    assert read(path) == [(0, "a"), (1, "b"), (2, "c")], "blank lines, or a last line without its end, moved indices"
    assert read(path, first=2) == [(2, "c")], "blank lines counted while skipping"


def test_a_document_larger_than_many_reads_is_whole(tmp_path):
    text = "".join(json.dumps(i) for i in range(200_000))
    (tmp_path / "a.jsonl").write_bytes(lines_of([text, "after"]))
    write_jsonl_zst(tmp_path / "a.jsonl.zst", [{"text": text}, {"text": "after"}])
    for name in ("a.jsonl", "a.jsonl.zst"):
        assert read(tmp_path / name) == [(0, text), (1, "after")], name


def cut_at_block_end(data: bytes) -> int:
    """Length of a zstd frame up to the end of its first block: a cut that a careless reader takes for an end."""
    header = zstandard.frame_header_size(data)
    block = int.from_bytes(data[header : header + 3], "little")
    assert not block & 1, "the frame needs more than one block for this test"
    return header + 3 + (block >> 3)


def test_a_cut_behind_a_newline_at_a_block_s_end_is_seen(tmp_path):
    """The cut that zstandard's own reader takes for the end: whole lines, no error, half of them gone."""
    line = json.dumps({"text": "x" * 50}).encode().ljust(127) + b"\n"
    block = 128 * 1024
    data = zstandard.ZstdCompressor(write_checksum=True).compress(line * (2 * block // len(line)))
    path = tmp_path / "cut.jsonl.zst"
    path.write_bytes(data[: cut_at_block_end(data)])
    careless = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read().splitlines(True)
    assert careless == [line] * (block // len(line)), "this cut does not shorten the file in silence any more"
    told = f"damaged at document 1024: the file ends at byte {path.stat().st_size}, inside the zstd frame at byte 0"
    with pytest.raises(DamagedShard, match=rf"cut\.jsonl\.zst: {told}"):
        read(path)


def test_no_cut_of_a_compressed_file_goes_unseen(tmp_path, texts):
    good = lines_of(texts[:6])
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(good)
    for name, data in (("a.jsonl.zst", frame), ("a.jsonl.gz", gzip.compress(good))):
        path = tmp_path / name
        for stop in (*range(0, len(data) - 20, 7), *range(len(data) - 20, len(data))):
            path.write_bytes(data[:stop])
            with pytest.raises(DamagedShard):
                read(path)
                pytest.fail(f"{name}: {stop} of {len(data)} bytes were read without an error")


def test_what_follows_the_last_frame_is_refused(tmp_path, texts):
    good = lines_of(texts[:6])
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(good)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(frame + b"\0\0\0\0\0\0")
    with pytest.raises(DamagedShard, match=rf"document 6: the zstd frame at byte {len(frame)}:"):
        read(path)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(good) + b"garbage")
    with pytest.raises(DamagedShard, match=r"a\.jsonl\.gz: damaged at document \d+: the gzip stream, read up to byte"):
        read(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "b"', r"no JSON \(Expecting ',' delimiter, at character 12 of '{\"text\": \"b\"'\)"),
        (b'{"text": "b"} {"text": "c"}', r"Extra data, at character 14 of '{\"text\": \"b\"} {\"text\": \"'\.\.\.\)"),
        (b"It was a dark and stormy night", r"no JSON \(Expecting value, at character 0 of 'It was a"),
        (b'{"text": "\xff"}', r"not UTF-8 \(byte 0xff at 10\)"),
        ('{"text": "b"}'.encode("utf-16"), "UTF-16, not UTF-8"),
        ('{"text": "b"}'.encode("utf-16-le"), "UTF-16, not UTF-8"),
        ('{"text": "b"}'.encode("utf-32-be"), "UTF-32, not UTF-8"),
        (b"[1]", "a list, no object"),
        (b"null", "null, no object"),
        (b'"text"', "a string, no object"),
        (b"7" * 6000, "a number, no object"),
        (b"\0" * 20, "no JSON"),
    ],
)
def test_a_bad_line_is_refused_by_document_and_byte(tmp_path, line, reason):
    begin = '{"text": "ü"}\n\n'.encode()
    path = tmp_path / "bad.jsonl"
    path.write_bytes(begin + line + b'\n{"text": "d"}\n')
    wanted = "; one JSON object a line, in UTF-8, is wanted: mend it at its source, or replace a file that was cut"
    place = f"document 1, the line at byte {len(begin)} of the file"
    with pytest.raises(BadRecord, match=rf"bad\.jsonl: {place}: .*{reason}.*{wanted}") as caught:
        read(path)
    assert len(str(caught.value)) < 320 + len(str(path)) and "\n" not in str(caught.value), str(caught.value)
    with pytest.raises(BadRecord, match=rf"{reason}.*; until then none of its documents \(3\) is read$"):
        check_documents(path, "jsonl", "text")
    packed = tmp_path / "bad.jsonl.zst"
    packed.write_bytes(zstandard.compress(path.read_bytes()))
    with pytest.raises(DamagedShard, match=rf"at byte {len(begin)} of the decompressed text"):
        read(packed)


def test_a_bad_line_in_a_file_that_is_cut_further_on_is_damage_of_the_file(tmp_path):
    """The documents cannot be counted, and mending that line would not be enough."""
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\nnull\n' + lines_of(["x" * 50] * 50))[:-4])
    with pytest.raises(DamagedShard, match=r"cut\.jsonl\.gz: damaged at document .*intact copy") as caught:
        check_documents(path, "jsonl", "text")
    assert not isinstance(caught.value, BadRecord)


def test_a_number_of_any_length_and_a_byte_order_mark_are_read(tmp_path):
    """Python reads 4,300 digits as a whole number and no more; nobody looks at a number beside the text."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "a", "meta": {"redpajama_set_name": "\\ud83d"}}\n{"id": '
        + b"7" * 6000
        + b', "text": "b"}\n{"text": "c"}\n'
    )
    assert list(read_jsonl(path)) == [(0, "a", None), (1, "b", None), (2, "c", None)]


def test_the_writer_stores_size_and_checksum_and_agrees_with_the_demo(tmp_path, demo):
    """The library's default frame has no checksum: there a flip can go unseen, here it cannot."""
    shard = demo / "text" / "train" / "chunk1" / "example_train_0.jsonl.zst"
    records = [json.loads(line) for line in zstandard.open(shard, "rb").read().splitlines()]
    path = tmp_path / "new" / "again.jsonl.zst"
    write_jsonl_zst(path, records)
    assert path.read_bytes() == shard.read_bytes(), "the demo's writer and this one make different bytes"
    parameters = zstandard.get_frame_parameters(path.read_bytes())
    assert parameters.has_checksum and parameters.content_size == len(zstandard.open(shard, "rb").read())
    assert not zstandard.get_frame_parameters(zstandard.ZstdCompressor().compress(b"x")).has_checksum, (
        "the library sets checksums by itself now: the writer need not"
    )


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    write_jsonl_zst(path, [{"text": "old"}])

    def failing():
        yield {"text": "new"}
        raise RegrowError("the source broke off")

    with pytest.raises(RegrowError, match="broke off"):
        write_jsonl_zst(path, failing())
    assert read(path) == [(0, "old")] and list(tmp_path.iterdir()) == [path], "half a file was left behind"
    (tmp_path / "file").write_text("")
    with pytest.raises(RegrowError, match=r"b\.jsonl\.zst: cannot be written"):
        write_jsonl_zst(tmp_path / "file" / "b.jsonl.zst", [{"text": "x"}])


@pytest.mark.parametrize("line", ["[" * 200_000, '{"text": ' + '{"a":' * 200_000])
def test_json_that_is_nested_too_deep_is_damage_with_its_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(
        BadRecord, match=r"a\.jsonl: document 1, the line at byte 14 of the file: .*recurs.*mend it at its source"
    ):
        read(path)


@pytest.mark.parametrize("window", [27, 28, 31])
def test_a_frame_may_ask_for_any_window(tmp_path, window):
    """As zstd --long makes it: a header without a size, with the window; then one block, as it is."""
    line = b'{"text": "x"}\n'
    block = (len(line) << 3 | 1).to_bytes(3, "little") + line
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.FRAME_HEADER + bytes([0, window - 10 << 3]) + block)
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 2**window
    assert read(path) == [(0, "x")]
