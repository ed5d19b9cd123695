"""Space for the copies of remote shards: what lies in a cache, what is on its way, and what a run will need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.data.remote.space import copy_size, needed_space, require_cache_space, taken_room
from pipeline.errors import RegrowError
from pipeline.files import require_space

DIGEST = "0123456789abcdef0123"


def test_the_space_that_a_cache_needs(corpus, tmp_path):
    url = replace(corpus[0], kind="url", place="https://host", bytes=1000)
    rows = replace(url, path="a.parquet", bytes=9000, groups=(100, 500, 300))
    assert needed_space(corpus, 12) == 0, "local shards are not copied"
    assert needed_space([url, rows], 12) == 2 * 12 * 5000, "the largest part is the row group of 500 of 900 documents"
    assert require_cache_space(tmp_path / "cache", [url, rows], 12, limit=120_000) == 120_000
    with pytest.raises(
        RegrowError, match=r"12 lanes.*120,000 bytes, and data\.cache_size is 119,000.*fewer data\.lanes"
    ):
        require_cache_space(tmp_path / "cache", [url, rows], 12, limit=119_000)
    with pytest.raises(RegrowError, match=r"no space for the copies of remote shards.*GB free"):
        require_cache_space(tmp_path / "cache", [replace(url, bytes=10**15)], 12)


def test_a_row_group_s_copy_is_its_share_of_the_file(corpus):
    rows = replace(corpus[0], bytes=9000, groups=(100, 500, 300))
    assert [copy_size(rows, group) for group in (None, 0, 1, 2)] == [9000, 1000, 5000, 3000]


def test_sources_add_up_and_the_largest_of_each_counts(corpus):
    url = replace(corpus[0], kind="url", place="https://host", groups=None)
    shards = [
        replace(url, bytes=100),
        replace(url, bytes=300),
        replace(url, source=1, bytes=50),
        replace(url, source=1, kind="local", bytes=9999),
    ]
    assert needed_space(shards, 4) == 2 * 4 * (300 + 50)


def test_what_is_on_its_way_counts_as_if_it_were_there(tmp_path):
    sizes = {
        f"{DIGEST}-part_1.jsonl": 10,
        f"{DIGEST}-3-x.parquet": 20,
        f"{DIGEST}-x.tar.800.part": 30,
        f"{DIGEST}-x.tar.5.part": 40,
        f"{DIGEST}-part_1.jsonl.sha256": 64,
        "thesis.tex": 1000,
        "0123-x.jsonl": 1000,
    }
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    room = {path.name: size for path, (_, size) in taken_room(tmp_path).items()}
    assert room == {
        f"{DIGEST}-part_1.jsonl": 10,
        f"{DIGEST}-3-x.parquet": 20,
        f"{DIGEST}-x.tar.800.part": 800,
        f"{DIGEST}-x.tar.5.part": 40,
    }, "a temporary file counts what it will have, or what it has where that is more; what no cache named does not"


def test_copies_that_are_there_need_no_room_again(corpus, tmp_path, monkeypatch):
    """The disk has 700 bytes free: 1,000 are needed, and 400 of them lie there."""
    asked = []
    monkeypatch.setattr(
        "pipeline.data.remote.space.require_space",
        lambda folder, size, what: asked.append(size) or require_space(folder, size, what),
    )
    url = replace(corpus[0], kind="url", place="https://host", groups=None, bytes=500)
    assert require_cache_space(tmp_path, [url], 1) == 1000
    (tmp_path / f"{DIGEST}-x.jsonl").write_bytes(bytes(400))
    assert require_cache_space(tmp_path, [url], 1) == 1000
    (tmp_path / f"{DIGEST}-y.jsonl").write_bytes(bytes(4000))
    assert require_cache_space(tmp_path, [url], 1) == 1000
    assert require_cache_space(tmp_path, corpus, 1) == 0
    assert asked == [1000, 600, 0], "the disk was asked for other room than what is still missing"
