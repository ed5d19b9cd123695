"""Damage at random: a shard that was cut, flipped, blanked or added to is refused, or gives exactly what it held.

Every format is damaged in a fixed set of random ways. What a format cannot see by itself stands here as a rule, is
told in docs/damage.md, and is seen by the sha256 of the manifest. A case that the rules do not allow fails.
"""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.data.damage import DamagedShard
from pipeline.data.formats import tokenised
from pipeline.data.formats.documents import READERS, check_documents, format_of
from pipeline.data.formats.jsonl import write_jsonl_zst
from pipeline.data.formats.tokenised import read_tokenised, write_tokenised
from pipeline.data.remote.cache import ShardCache
from pipeline.data.sources import ENDINGS
from pipeline.errors import RegrowError
from pipeline.files import hash_file
from tests.data.corpora import listing_of

CASES = 120
DOCUMENTS = 40


@dataclass
class Good:
    """A whole shard: its bytes, its sha256, its documents, and what may happen to them unseen (see ``allowed``)."""

    path: Path
    format: str
    documents: list[Any]
    unseen: frozenset[str]
    data: bytes = field(init=False)
    sha256: str = field(init=False)

    def __post_init__(self):
        self.data, self.sha256 = self.path.read_bytes(), hash_file(self.path)


def jsonl_lines(texts) -> list[bytes]:
    return [
        json.dumps({"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}}).encode() + b"\n" for text in texts
    ]


def make_plain(path, texts):
    path.write_bytes(b"".join(jsonl_lines(texts)))


def make_one_frame(path, texts):
    write_jsonl_zst(path, [json.loads(line) for line in jsonl_lines(texts)])


def make_frames(path, texts):
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    path.write_bytes(
        b"".join(compressor.compress(b"".join(jsonl_lines(texts[at : at + 8]))) for at in range(0, len(texts), 8))
    )


def make_unchecked_frame(path, texts):
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=False).compress(b"".join(jsonl_lines(texts))))


def make_gzip(path, texts):
    path.write_bytes(gzip.compress(b"".join(jsonl_lines(texts)), mtime=0))


def make_tar(path, texts):
    from webdataset import TarWriter

    file = io.BytesIO()
    with TarWriter(file, mtime=0, compress=False) as tar:
        for number, text in enumerate(texts):
            domain = {"meta": {"redpajama_set_name": "RedPajamaC4"}}
            tar.write({"__key__": f"{number:06d}", "txt": text, "json": domain})
    path.write_bytes(gzip.compress(file.getvalue(), mtime=0) if path.name.endswith(".gz") else file.getvalue())


def make_parquet(path, texts):
    pyarrow.parquet.write_table(table_of(texts), path, row_group_size=15)


def make_checked_parquet(path, texts):
    pyarrow.parquet.write_table(table_of(texts), path, row_group_size=15, write_page_checksum=True)


def table_of(texts):
    return pyarrow.Table.from_pylist([json.loads(line) for line in jsonl_lines(texts)])


def make_tokenised(path, texts):
    write_tokenised(path, (list(text.encode()) for text in texts), about={"vocabulary": 256})


#: What the format's own bytes cannot tell. ``flips``: each flip may change one document. ``block``: the documents of a
#: page or frame may change, their number may not. ``zeros``: as ``block``, where zeros are written over a text.
#: ``flips in pairs``: one takes a page's checksum away, the other may then change the page.
#: ``end at a line``, ``end at a frame``: documents are missing behind a cut that falls exactly there. ``hole``: two
#: lines whose ends are gone may make one that is whole.
MAKERS = {
    "plain.jsonl": (make_plain, {"flips", "end at a line", "hole"}),
    "one.jsonl.zst": (make_one_frame, set()),
    "frames.jsonl.zst": (make_frames, {"end at a frame"}),
    "unchecked.jsonl.zst": (make_unchecked_frame, {"block"}),
    "a.jsonl.gz": (make_gzip, set()),
    "a.tar": (make_tar, {"flips", "zeros"}),
    "a.tar.gz": (make_tar, set()),
    "plain.parquet": (make_parquet, {"block"}),
    "checked.parquet": (make_checked_parquet, {"flips in pairs"}),
    "tokenised.tar": (make_tokenised, set()),
}


def read(path: Path, format: str) -> list[Any]:
    """Everything that a reader gives: numbers, texts or ids, domains."""
    if format == "tokenised":
        return [(index, ids.tolist()) for index, ids in read_tokenised(path)]
    return list(READERS[format](path, "text", 0))


def good_shard(name, folder, texts) -> Good:
    make, unseen = MAKERS[name]
    path = folder / name
    make(path, texts)
    format = "tokenised" if name == "tokenised.tar" else format_of(name)
    documents = read(path, format)
    assert len(documents) == DOCUMENTS
    return Good(path, format, documents, frozenset(unseen))


#: A place in a file in millionths of its length, so that one strategy serves every file; the ends have more than
#: their share, for that is where headers, footers and end markers stand.
places = st.one_of(
    st.integers(0, 1_000_000), st.integers(0, 1_000_000), st.integers(0, 20_000), st.integers(970_000, 1_000_000)
)
flips = st.tuples(st.just("flip"), st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=4))
damages = st.one_of(
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("cut behind a newline"), places),
    flips,
    flips,
    st.tuples(st.just("zeros"), places, st.integers(1, 2048)),
    st.tuples(st.just("hole"), places, st.integers(1, 2048)),
    st.tuples(st.just("more"), st.binary(min_size=1, max_size=600)),
)


def damaged(data: bytes, damage: tuple[Any, ...]) -> bytes:
    kind, *details = damage
    if kind == "flip":
        changed = bytearray(data)
        for place, bit in details[0]:
            changed[place * (len(data) - 1) // 1_000_000] ^= 1 << bit
        return bytes(changed)
    if kind == "more":
        return data + details[0]
    at = details[0] * (len(data) - 1) // 1_000_000
    if kind == "cut":
        return data[:at]
    if kind == "cut behind a newline":
        return data[: data.rfind(b"\n", 0, at) + 1]
    end = min(at + details[1], len(data))
    return data[:at] + (b"" if kind == "hole" else bytes(end - at)) + data[end:]


def allowed(good: Good, damage: tuple[Any, ...], changed: bytes, read: list[Any]) -> bool:
    """Whether the format has no means to see that ``read`` is not what it held."""
    kind, whole = damage[0], good.documents
    if kind in ("flip", "zeros") and len(read) == len(whole):
        differ = sum(one != other for one, other in zip(read, whole, strict=True))
        if kind == "flip" and "flips" in good.unseen:
            return differ <= len(damage[1])
        paired = kind == "flip" and len(damage[1]) > 1 and "flips in pairs" in good.unseen
        return paired or "block" in good.unseen or kind in good.unseen
    if kind == "hole":
        return "hole" in good.unseen
    if kind.startswith("cut") and read == whole[: len(read)]:
        at_line = good.data[len(changed) - 1 : len(changed) + 1].find(b"\n") >= 0
        at_frame = good.data[len(changed) :].startswith(zstandard.FRAME_HEADER)
        return (at_line and "end at a line" in good.unseen) or (at_frame and "end at a frame" in good.unseen)
    return False


def test_every_format_and_ending_is_damaged():
    formats = {"tokenised" if name == "tokenised.tar" else format_of(name) for name in MAKERS}
    assert formats == {*READERS, "tokenised"}
    missing = [ending for ending in ENDINGS if not any(name.endswith(ending) for name in MAKERS)]
    assert not missing, f"no file of {missing} is damaged here"


@pytest.mark.parametrize("name", MAKERS)
def test_damage_is_refused_or_does_no_harm(name, texts, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(tokenised, "BLOCK", 4000)
    folder = tmp_path_factory.mktemp("damage")
    good = good_shard(name, folder, texts[:DOCUMENTS])
    counts: Counter[str] = Counter()
    path = folder / f"damaged.{name}"
    (listed,) = listing_of(str(good.path)).shards
    pinned, cache = replace(listed, path=path.name), ShardCache(folder / "cache")
    assert pinned.sha256 == good.sha256

    @settings(
        max_examples=CASES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(damages)
    def one_case(damage):
        changed = damaged(good.data, damage)
        if changed == good.data:
            return
        path.write_bytes(changed)
        # As a lane opens it: against the manifest no damage at all is unseen.
        with pytest.raises(DamagedShard, match=path.name):
            cache.open(pinned)
        try:
            got = read(path, good.format)
        except RegrowError as error:
            # A flip in the name or the type of parquet's text column is refused as another column.
            assert isinstance(error, DamagedShard) or "the column 'text'" in str(error) or "no column" in str(error)
            assert str(path) in str(error) and "\n" not in str(error), f"the message does not name the shard: {error}"
            # Damage further on is said before a record that is bad by itself.
            with pytest.raises(DamagedShard if isinstance(error, DamagedShard) else RegrowError):
                check_documents(path, good.format, "text")
            counts["refused"] += 1
            return
        if got == good.documents:
            counts["harmless"] += 1
            return
        assert allowed(good, damage, changed, got), (
            f"{name}: {len(got)} of {len(good.documents)} documents after {damage}, without an error"
        )
        counts["unseen"] += 1

    one_case()
    print(f"{name}: {dict(counts)}")
    assert counts.total() * len(MAKERS) > 500, f"{name}: only {counts.total()} cases of damage"
    assert counts["refused"] > CASES // 4, f"{name}: hardly any damage was refused: {counts}"
    assert good.unseen or not counts["unseen"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plain.jsonl", lambda data: data.replace(b"sugar", b"sugas", 1)),
        ("plain.jsonl", lambda data: data[: data.index(b"\n") + 1]),
        ("plain.jsonl", lambda data: data.replace(b"redpajama_set_name", b"redpajama_set_namf", 1)),
        ("frames.jsonl.zst", lambda data: data[: data.index(zstandard.FRAME_HEADER, 1)]),
        ("a.tar", lambda data: data.replace(b"sugar", b"sugas", 1)),
        ("plain.parquet", lambda data: data.replace(b"sugar", b"sugas", 1)),
    ],
    ids=[
        "flip in a text",
        "cut behind a line",
        "flip in a domain's key",
        "cut between frames",
        "flip in a member",
        "flip in a page",
    ],
)
def test_what_docs_damage_md_calls_unseen_is_unseen(tmp_path, texts, name, change):
    """Without a hash these read as whole shards; should one be seen some day, the page is to say so."""
    good = good_shard(name, tmp_path, texts[:DOCUMENTS])
    changed = change(good.data)
    assert changed != good.data
    good.path.write_bytes(changed)
    assert read(good.path, good.format) != good.documents, "harmless, or the page is out of date"
    assert hash_file(good.path) != good.sha256, "the manifest's sha256 does not see it"
