"""WebDataset tars: the samples that webdataset sees, and an error where it sees a shorter archive."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from pipeline.data.damage import BadRecord, DamagedShard
from pipeline.data.formats.documents import check_documents
from pipeline.data.formats.tar import read_tar
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.errors import RegrowError


def read(path, **more):
    return [(index, text) for index, text, _ in read_tar(path, **more)]


def tar_of(path, members, **more):
    """A tar of (name, content) pairs, or of TarInfo objects without content."""
    with tarfile.open(path, "w", **more) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def as_webdataset_reads(path):
    import webdataset

    return list(webdataset.WebDataset([str(path)], nodesplitter=None, workersplitter=None, shardshuffle=False))


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_the_samples_are_those_of_webdataset(shard_of, texts, ending):
    path = shard_of(f"a.{ending}", texts[:50])
    samples = as_webdataset_reads(path)
    assert [text for _, text in read(path)] == [sample["txt"].decode() for sample in samples] == texts[:50]
    domains = {domain for _, _, domain in read_tar(path)}
    assert domains == {"RedPajamaWikipedia"}, "the domain in KEY.json was not read"


def test_token_ids_are_no_damaged_text(tmp_path):
    """Behind a URL the format is the config's word: a wrong one must not leave out the whole corpus as damaged."""
    write_tokenised(tmp_path / "ids.tar", [[1, 2], [3]], about={"vocabulary": 10})
    with pytest.raises(RegrowError, match=r"ids\.tar: it holds token ids, no text; set format: tokenised") as caught:
        read(tmp_path / "ids.tar")
    assert not isinstance(caught.value, DamagedShard)


def test_keys_names_and_other_members(tmp_path):
    """Folders in names, capitals, long names (pax and GNU), members that are not read, files that are no samples."""
    long = "x" * 150
    members = [
        ("README", b"no sample"),
        ("__index__/a.txt", b"no sample"),
        ("part.1/ä.txt", b"one"),
        ("part.1/ä.json", b'{"meta": {"redpajama_set_name": "RedPajamaC4"}}'),
        ("part.1/ä.seg.png", b"\x89"),
        (f"d/{long}.TXT", b"two"),
        (f"d/{long}.json", b"{}"),
    ]
    folder = tarfile.TarInfo("part.1")
    folder.type = tarfile.DIRTYPE
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tar_of(tmp_path / "a.tar", [folder, *members], format=format)
        assert list(read_tar(path)) == [(0, "one", "RedPajamaC4"), (1, "two", None)]
        assert [sample["txt"] for sample in as_webdataset_reads(path)] == [b"one", b"two"]


def test_a_cut_at_or_inside_a_header_is_seen(shard_of, texts):
    """The cut that tarfile and webdataset take for the end: the last sample comes out with a member missing."""
    path = shard_of("cut.tar", texts[:20])
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    header = members[21].offset
    for stop in (header, header + 100):
        path.write_bytes(data[:stop])
        careless = as_webdataset_reads(path)
        assert len(careless) == 11 and "txt" not in careless[-1], "webdataset sees this cut now"
        with pytest.raises(DamagedShard, match=rf"document 10: .*header or the end marker is due at byte {header}"):
            read(path)
    path.write_bytes(data[:header] + bytes(512) + data[header + 512 :])
    assert len(as_webdataset_reads(path)) == 11, "webdataset sees a header of zeros now"
    with pytest.raises(DamagedShard, match=rf"data at byte {header + 512}, behind the end marker at byte {header}"):
        read(path)
    path.write_bytes(data[:header] + b"?" + data[header + 1 :])
    with pytest.raises(DamagedShard, match=rf"the header at byte {header}"):
        read(path)
    inside = members[21].offset_data + 5
    path.write_bytes(data[:inside])
    with pytest.raises(DamagedShard, match=rf"000010\.txt wants {members[21].size} bytes, 5 are left"):
        read(path)
    with pytest.raises(DamagedShard, match="header or the end marker is due"):
        read(path, first=11)


def test_no_cut_of_an_archive_goes_unseen(shard_of, texts):
    path = shard_of("cut.tar", texts[:3])
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    end += -end % 512 + 1024
    for stop in range(0, end, 37):
        path.write_bytes(data[:stop])
        with pytest.raises(DamagedShard):
            read(path)
            pytest.fail(f"{stop} of {end} bytes were read without an error")
    path.write_bytes(data[: end - 1])
    with pytest.raises(DamagedShard, match=rf"cut inside its end marker, at byte {end - 1}"):
        read(path)
    path.write_bytes(data[:end])
    assert len(read(path)) == 3, "an archive that ends with its end marker is whole"
    path.write_bytes(data + b"x")
    with pytest.raises(DamagedShard, match=rf"data at byte {len(data)}, behind the end marker"):
        read(path)


TEXT, DOMAIN = ("0.txt", b"zero"), ("0.json", b"{}")


@pytest.mark.parametrize(
    ("members", "document", "reason"),
    [
        ([TEXT, DOMAIN, ("1.txt", b"one")], 1, "the sample 1 at byte .* has txt of .*; it needs json and txt"),
        ([TEXT, DOMAIN, ("1.json", b"{}"), ("2.txt", b"two"), ("2.json", b"{}")], 1, "has json of"),
        ([TEXT, ("1.jpg", b"")], 1, "the sample 1 at byte .* has neither of"),
        ([("0.jpg", b""), TEXT], 0, None),
        ([TEXT, TEXT], 0, "two members txt"),
        ([TEXT, ("1.txt", b"\xff")], 1, "the sample 1 at byte .*: its txt is not UTF-8 .byte 0xff at 0"),
        (
            [TEXT, DOMAIN, ("1.txt", b"one"), ("1.json", b"{")],
            1,
            "the sample 1 at byte .*: its json is no JSON .Expecting",
        ),
        ([TEXT, DOMAIN, ("1.txt", b"one"), ("1.json", b"[]")], 1, "the sample 1 .*: its json is a list, no object"),
        ([("0.json", b'{"text": "a"}'), ("1.json", b"1")], 1, "the sample 1 .*: its json is a number, no object"),
    ],
)
def test_a_bad_sample_is_refused_by_key_and_byte(tmp_path, members, document, reason):
    path = tar_of(tmp_path / "bad.tar", members)
    if reason is None:
        assert read(path) == [(0, "zero")], "a member that is not read stood in the way"
        return
    with pytest.raises(DamagedShard, match=rf"bad\.tar: (damaged at )?document {document}[:,] .*{reason}") as caught:
        read(path)
    if ": its " in reason:
        assert isinstance(caught.value, BadRecord) and "mend it at its source" in str(caught.value), str(caught.value)
        with pytest.raises(BadRecord, match=r"until then none of its documents \(2\) is read$"):
            check_documents(path, "tar", "text")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["0.jpg", "0.cls", "1.jpg", "1.cls"], "0.jpg, 0.cls, 1.jpg"),
        (["a/0.jpg", "1.txt"], "a/0.jpg"),
        (["first", "second"], "first, second"),
    ],
)
def test_a_tar_without_text_is_said_to_be_one(tmp_path, names, shown):
    path = tar_of(tmp_path / "other.tar", [(name, b"x") for name in names])
    with pytest.raises(DamagedShard, match=rf"other\.tar: a tar without text: it begins with {shown}, and a document"):
        read(path)


def test_what_macos_puts_beside_members_is_no_sample(tmp_path):
    members = [("._a", b"x"), ("a/._0.txt", b"x"), ("a/0.txt", b"zero"), ("a/._1.txt", b"x"), ("a/1.txt", b"one")]
    assert read(tar_of(tmp_path / "mac.tar", members)) == [(0, "zero"), (1, "one")]


def test_links_are_refused(tmp_path):
    """Another reader leaves them out in silence, and with them whole samples."""
    link = tarfile.TarInfo("1.txt")
    link.type, link.linkname = tarfile.LNKTYPE, "0.txt"
    path = tar_of(tmp_path / "link.tar", [TEXT, link])
    with pytest.raises(DamagedShard, match=r"1\.txt, at byte 1024, is a link"):
        read(path)


def test_documents_before_the_first_are_not_read(tmp_path):
    members = [(f"{number}.json", json.dumps({"text": str(number)}).encode()) for number in range(5)]
    members[1] = ("1.json", b"not json")
    path = tar_of(tmp_path / "a.tar", members)
    assert read(path, first=2) == [(2, "2"), (3, "3"), (4, "4")]
    with pytest.raises(DamagedShard, match="document 1"):
        read(path, first=1)
