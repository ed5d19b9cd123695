"""The contents of a shard: the documents that say something, wherever the shard lies."""

from __future__ import annotations

import pytest

from pipeline.data.contents import read_contents
from pipeline.data.listing import list_source
from pipeline.run import RegrowError


@pytest.mark.parametrize("ending", ["jsonl.zst", "parquet", "tar"])
def test_whoever_reads_contents_sees_only_documents_with_text(shard_of, texts, cache, server, ending):
    """Calibration, held-out rows and the search for held-out documents, here and behind a server."""
    records = [{"text": text} for text in (texts[0], None, "", texts[1], " \n", texts[2])]
    path = shard_of(f"a.{ending}", records)
    server.files[f"/a.{ending}"] = path.read_bytes()
    for place in (str(path), f"{server.address}/a.{ending}"):
        (shard,) = list_source(place).shards
        assert list(read_contents(shard, cache)) == [(0, texts[0]), (3, texts[1]), (5, texts[2])], place
    (strict,) = list_source(f"{server.address}/a.{ending}", on_no_text="raise").shards
    with pytest.raises(RegrowError, match=r"a record without text \(null\), at record 1; .*data\.on_no_text: skip"):
        list(read_contents(strict, cache))
