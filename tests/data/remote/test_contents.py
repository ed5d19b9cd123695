"""The contents of a shard: the documents that say something, wherever the shard lies."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data.remote.contents import read_contents
from pipeline.errors import RegrowError
from tests.data.corpora import listing_of


@pytest.mark.parametrize("ending", ["jsonl.zst", "parquet", "tar"])
def test_whoever_reads_contents_sees_only_documents_with_text(shard_of, texts, cache, server, ending):
    """Calibration, held-out rows and the search for held-out documents, here and behind a server."""
    records = [{"text": text} for text in (texts[0], None, "", texts[1], " \n", texts[2])]
    path = shard_of(f"a.{ending}", records)
    server.files[f"/a.{ending}"] = path.read_bytes()
    for place in (str(path), f"{server.address}/a.{ending}"):
        (shard,) = listing_of(place).shards
        assert list(read_contents(shard, cache)) == [(0, texts[0]), (3, texts[1]), (5, texts[2])], place
    (strict,) = listing_of(f"{server.address}/a.{ending}", on_no_text="raise").shards
    with pytest.raises(RegrowError, match=r"a record without text \(null\), at record 1; .*data\.on_no_text: skip"):
        list(read_contents(strict, cache))


def test_a_text_inside_a_struct_is_fetched_by_row_groups(texts, cache, server, tmp_path):
    records = [{"id": 7, "doc": {"text": text, "noise": "x"}} for text in texts[:9]]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=4)
    server.files["/a.parquet"] = path.read_bytes()
    (shard,) = listing_of(f"{server.address}/a.parquet", text_key="doc.text").shards
    assert shard.groups == (4, 4, 1)
    assert list(read_contents(shard, cache)) == list(enumerate(texts[:9]))
    assert list(read_contents(shard, cache, 1)) == list(enumerate(texts[:9]))[4:8]
    with pytest.raises(RegrowError, match=rf"{server.address}/a\.parquet: the column 'id' is of type int64"):
        listing_of(f"{server.address}/a.parquet", text_key="id")
