"""Small fixed sets of tokens: the calibration sequences that scoring runs on, and the held-out rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.contents import read_contents
from pipeline.data.fetching import ShardCache
from pipeline.data.overlap import hash_text
from pipeline.data.shards import Shard
from pipeline.data.tokens import Encoder
from pipeline.run import RegrowError


def _encoded(content: str | np.ndarray, encoder: Encoder, bos: str) -> list[int]:
    """[bos] ids separator, without the document's own BOS where the policy is not ``document``."""
    ids = encoder(content) if isinstance(content, str) else content.tolist()
    return ids[1:] if bos != "document" and encoder.bos is not None else ids


def _bos(encoder: Encoder, where: str) -> int:
    bos = encoder.tokenizer.bos_token_id
    if bos is None:
        raise RegrowError(f"{where} is every, but this tokenizer has no BOS token; use document or none")
    return bos


def calibration_sequences(
    shards: Sequence[Shard], encoder: Encoder, *, sequences: int, length: int, bos: str, seed: int,
    cache: Path | ShardCache,
) -> tuple[torch.Tensor, list[dict[str, Any]]]:  # fmt: skip
    """Random crops of random documents: ids (sequences, length) int64, and where each crop came from.

    As Shortened LLM draws them: a document of at least ``length`` tokens, a crop at a random offset, no document
    twice. The draw depends on the shards, the tokenizer and the seed alone. ``bos``: ``document`` keeps a BOS that
    the tokenizer itself puts before a document (a crop mostly loses it), ``every`` puts one before each crop,
    ``none`` has none. ``cache`` is a folder for shards that must be fetched, or the cache itself; no copy stays there.
    Raises RegrowError when too few documents are long enough.
    """
    cache = cache if isinstance(cache, ShardCache) else ShardCache(cache)
    draw = random.Random(seed)
    drawn = list(range(len(shards)))
    draw.shuffle(drawn)
    per_shard = -(-sequences // len(shards))
    room = length - 1 if bos == "every" else length
    rows, origins = [], []
    leftovers = []
    for number in drawn:
        if len(rows) == sequences:
            break
        shard = shards[number]
        found = 0
        remote_groups = shard.groups if shard.kind != "local" else None
        group = draw.randrange(len(remote_groups)) if remote_groups else None
        documents = list(read_contents(shard, cache, group))
        draw.shuffle(documents)
        for index, content in documents:
            ids = _encoded(content, encoder, bos)[:-1]
            if len(ids) < room:
                continue
            offset = draw.randrange(len(ids) - room + 1)
            crop = ids[offset : offset + room]
            if bos == "every":
                crop = [_bos(encoder, "score.bos"), *crop]
            origin = {"shard": shard.name, "document": index, "offset": offset}
            if isinstance(content, str):
                origin["hash"] = hash_text(content).hex()
            item = (crop, origin)
            if found < per_shard and len(rows) < sequences:
                rows.append(item[0])
                origins.append(item[1])
                found += 1
            elif len(leftovers) < sequences:
                leftovers.append(item)
            else:
                break
    for crop, origin in leftovers[: sequences - len(rows)]:
        rows.append(crop)
        origins.append(origin)
    if len(rows) < sequences:
        raise RegrowError(
            f"calibration: only {len(rows)} documents of the corpus have {room} tokens, and score.sequences is "
            f"{sequences}; lower score.length or score.sequences"
        )
    return torch.tensor(rows, dtype=torch.int64), origins


def held_out_rows(
    shards: Sequence[Shard], encoder: Encoder, *, length: int, bos: str, rows: int | None, cache: Path | ShardCache
) -> torch.Tensor:
    """Held-out documents end to end, cut to rows: ids (at most ``rows``, ``length``) int64, in file order.

    ``bos``: ``document`` is the training policy (BOS where documents begin, if the tokenizer has that habit),
    ``every`` begins each row with a BOS and has none elsewhere, ``none`` has none at all. The incomplete row at the
    end is dropped. ``cache`` as for ``calibration_sequences``. Raises RegrowError when there is not one full row.
    """
    cache = cache if isinstance(cache, ShardCache) else ShardCache(cache)
    leading = [_bos(encoder, "evaluate.perplexity.bos")] if bos == "every" else []
    packed: list[list[int]] = []
    rest: list[int] = []
    room = length - len(leading)
    for shard in shards:
        with closing(read_contents(shard, cache)) as documents:
            for _, content in documents:
                rest += _encoded(content, encoder, bos)
                while len(rest) >= room and (rows is None or len(packed) < rows):
                    packed.append([*leading, *rest[:room]])
                    rest = rest[room:]
                if rows is not None and len(packed) == rows:
                    return torch.tensor(packed, dtype=torch.int64)
    if not packed:
        raise RegrowError(f"held-out documents: {len(rest)} tokens in all, not one row of {length}")
    return torch.tensor(packed, dtype=torch.int64)
