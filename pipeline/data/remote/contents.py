"""The contents of a shard wherever it lies: fetched where it must be, decoded, and the copy given back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.tokenised import read_tokenised
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.texts import why_no_text


def read_contents(shard: Shard, cache: ShardCache, group: int | None = None) -> Iterator[tuple[int, str | np.ndarray]]:
    """(index in the shard, text, or ids in a tokenised shard) of every document that has a text and is not excluded.

    ``group`` reads that row group of a remote parquet shard alone; without it all are read, one after the other. A
    remote shard's copy is given back when it has been read, or when the iterator is closed.
    """
    in_groups = shard.kind != "local" and shard.groups is not None
    before = list(accumulate(shard.groups, initial=0)) if in_groups else [0]
    wanted = [group] if in_groups else [None]
    for each in range(len(shard.groups)) if in_groups and group is None else wanted:
        path = cache.open(shard, each)
        try:
            if shard.format == "tokenised":
                # A document that is excluded, or has no text, has no token.
                yield from ((index, ids) for index, ids in read_tokenised(path) if len(ids))
            else:
                for index, text in read_documents(
                    path, shard.format, shard.text_key, shard.exclude_domains, on_no_text=shard.on_no_text
                ):
                    if why_no_text(text) is None:
                        yield before[each or 0] + index, text
        finally:
            cache.drop(shard, each)
