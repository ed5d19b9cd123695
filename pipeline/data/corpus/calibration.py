"""The calibration sequences that scoring runs on: random crops of random documents of the corpus.

Files are streamed: what is held at a time are the documents drawn so far, and a number for each one of a file.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from heapq import heappush, heappushpop
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.corpus.overlap import hash_text
from pipeline.data.remote.cache import ShardCache
from pipeline.data.remote.contents import read_contents
from pipeline.data.shards import Shard
from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError


def encoded(content: str | np.ndarray, encoder: Encoder, bos: str) -> list[int]:
    """[bos] ids separator, without the document's own BOS where the policy is not ``document``."""
    ids = encoder(content) if isinstance(content, str) else content.tolist()
    return ids[1:] if bos != "document" and encoder.bos is not None else ids


def leading_ids(encoder: Encoder, bos: str, key: str) -> list[int]:
    """What every row begins with under the policy ``bos``, the value of ``key``."""
    if bos != "every":
        return []
    if encoder.tokenizer.bos_token_id is None:
        raise RegrowError(f"{key} is every, but this tokenizer has no BOS token; use document or none")
    return [encoder.tokenizer.bos_token_id]


def calibration_sequences(
    shards: Sequence[Shard],
    encoder: Encoder,
    *,
    sequences: int,
    length: int,
    bos: str,
    seed: int,
    cache: Path | ShardCache,
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Random crops of random documents: ids (sequences, length) int64, and where each crop came from.

    As Shortened LLM draws them: a document of at least ``length`` tokens, a crop at a random offset, no document
    twice. The draw depends on the shards, the tokenizer and the seed alone. ``bos``: ``document`` keeps a BOS that
    the tokenizer itself puts before a document (a crop mostly loses it), ``every`` puts one before each crop,
    ``none`` has none. ``cache`` is a folder for shards that must be fetched, or the cache itself; no copy stays there.
    Raises RegrowError when too few documents are long enough.
    """
    cache = cache if isinstance(cache, ShardCache) else ShardCache(cache)
    leading = leading_ids(encoder, bos, "score.bos")
    draw = random.Random(seed)
    drawn = list(range(len(shards)))
    draw.shuffle(drawn)
    per_shard = -(-sequences // len(shards))
    room = length - len(leading)
    taken: list[tuple[list[int], dict[str, Any]]] = []
    spare: list[tuple[list[int], dict[str, Any]]] = []

    def long_enough(content: str | np.ndarray) -> tuple[np.ndarray, str | None] | None:
        """A document's ids and, of a text, its hash; None where it is too short."""
        ids = np.array(encoded(content, encoder, bos)[:-1], dtype=np.int64)
        return (ids, hash_text(content).hex() if isinstance(content, str) else None) if len(ids) >= room else None

    for number in drawn:
        if len(taken) == sequences:
            break
        shard = shards[number]
        own, spared = min(per_shard, sequences - len(taken)), sequences - len(spare)
        group = draw.randrange(len(shard.groups)) if shard.kind != "local" and shard.groups else None
        # An offset is drawn for one document more than are taken: what other files give depends on it.
        for index, (ids, digest) in _first_of_shuffled(shard, group, cache, draw, own + spared + 1, long_enough):
            offset = draw.randrange(len(ids) - room + 1)
            origin = {"shard": shard.name, "document": index, "offset": offset}
            item = ([*leading, *ids[offset : offset + room].tolist()], origin | ({"hash": digest} if digest else {}))
            if own:
                taken.append(item)
                own -= 1
            elif spared:
                spare.append(item)
                spared -= 1
    taken += spare[: sequences - len(taken)]
    if len(taken) < sequences:
        raise RegrowError(
            f"calibration: only {len(taken)} documents of the corpus have {room} tokens, and score.sequences is "
            f"{sequences}; lower score.length or score.sequences"
        )
    return torch.tensor([row for row, _ in taken], dtype=torch.int64), [origin for _, origin in taken]


def _first_of_shuffled(
    shard: Shard,
    group: int | None,
    cache: ShardCache,
    draw: random.Random,
    wanted: int,
    make: Callable[[str | np.ndarray], Any],
) -> list[tuple[int, Any]]:
    """(index, what ``make`` gives) of the first documents of a shuffled file for which it gives something: ``wanted``
    of them, or all that there are.

    As if the file were shuffled in memory, but its documents' numbers are shuffled (12 bytes for each), and the file
    is streamed. It is read a second time where the manifest does not say how many documents it gives: where there is
    no count, or some are left out.
    """
    known = shard.documents if group is None else shard.groups[group]
    count, state = known or 0, draw.getstate()
    cache.open(shard, group)  # Held over both readings: it is fetched once.
    try:
        while True:
            draw.setstate(state)
            turns = _shuffled_turns(count, draw)
            kept: list[tuple[int, int, Any]] = []  # A heap: the one whose turn is last stands first.
            seen = 0
            for seen, (index, content) in enumerate(read_contents(shard, cache, group), start=1):
                turn = int(turns[seen - 1]) if seen <= count else None
                if turn is None or (len(kept) == wanted and turn > -kept[0][0]):
                    continue
                made = make(content)
                if made is not None:
                    (heappush if len(kept) < wanted else heappushpop)(kept, (-turn, index, made))
            if seen == count:
                return [(index, made) for _, index, made in sorted(kept, key=lambda item: -item[0])]
            count = seen
    finally:
        cache.drop(shard, group)


def _shuffled_turns(count: int, draw: random.Random) -> np.ndarray:
    """When each of ``count`` documents has its turn after ``draw.shuffle`` of a list of them: (count,) uint32."""
    order = array("I", range(count))
    draw.shuffle(order)
    turns = np.empty(count, dtype=np.uint32)
    turns[np.frombuffer(order, dtype=np.uint32)] = np.arange(count, dtype=np.uint32)
    return turns
