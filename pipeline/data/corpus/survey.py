"""Survey: how many tokens a corpus holds, how fast they are made, and what stands in it, from a sample of its text.

The count is an estimate, characters times the sample's tokens for a character, except for tokenised shards, which
know theirs. One shard of each source is read for it; where the corpus is remote that shard also stands for the
characters that a byte of a file holds. Strings of special tokens are counted in the sample.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import check_documents, read_documents
from pipeline.data.formats.tokenised import about_tokenised
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.special_tokens import count_strings
from pipeline.data.texts import counted, refuse_no_text
from pipeline.data.tokens import Encoder

#: Characters that are tokenized for an estimate.
SAMPLE = 400_000


@dataclass(frozen=True)
class Survey:
    """Tokens of a source (an estimate unless ``exact``), and the tokens a second that one process made of its text.

    Of the ``sampled`` documents ``holding`` have strings of special tokens in them; ``special`` counts these.
    ``without_text`` counts the records without text of a remote shard, by kind.
    """

    tokens: int
    exact: bool
    tokens_per_second: float | None
    sampled: int = 0
    holding: int = 0
    special: dict[str, int] = field(default_factory=dict)
    without_text: dict[str, int] = field(default_factory=dict)


def survey(
    shards: Sequence[Shard], encode: Encoder, cache: ShardCache, characters: int | None, on_damage: str = "raise"
) -> Survey:
    """Estimate the tokens of one source; ``characters`` of all its kept text where a listing has counted them.

    on_damage: ``raise``, or ``skip``: a damaged remote shard, which its lane will leave out, is passed over here too.
    Raises RegrowError when no shard can be had, DamagedShard when the one that is looked into is damaged.
    """
    if all(shard.format == "tokenised" and shard.kind == "local" for shard in shards):
        return Survey(sum(about_tokenised(cache.open(shard))["tokens"] for shard in shards), True, None)
    # The longest one: the last file of a corpus may hold a handful of documents.
    longest_first = sorted(shards, key=lambda shard: -shard.bytes)
    for shard in longest_first:
        try:
            return _look_into(shard, sum(each.bytes for each in shards), encode, cache, characters)
        except DamagedShard:
            if on_damage == "raise" or shard is longest_first[-1]:
                raise
    raise AssertionError("a source has shards")


def _look_into(shard: Shard, size: int, encode: Encoder, cache: ShardCache, characters: int | None) -> Survey:
    """The survey of a source whose shards have ``size`` bytes together, from one of them."""
    group = 0 if shard.groups and shard.kind != "local" else None
    path = cache.open(shard, group)
    try:
        if shard.format == "tokenised":
            return Survey(round(about_tokenised(path)["tokens"] * size / shard.bytes), size == shard.bytes, None)
        texts, read, tokens, begin = [], 0, 0, time.perf_counter()
        for _, text in read_documents(
            path, shard.format, shard.text_key, shard.exclude_domains, on_no_text=shard.on_no_text
        ):
            ids = encode(text)
            tokens += len(ids)
            if ids:
                texts.append(text)
                read += len(text)
            if read >= SAMPLE:
                break
        speed = tokens / (time.perf_counter() - begin)
        holding, special = count_strings(texts, encode.special)
        without_text: dict[str, int] = {}
        if characters is None:
            census = check_documents(path, shard.format, shard.text_key)
            without_text = census.without_text
            if without_text and shard.on_no_text == "raise":
                raise refuse_no_text(shard.name, census.first_without_text, f"{counted(without_text)}, the first")
            part = census.documents / sum(shard.groups) if group is not None else 1
            characters = round(census.characters_without(shard.exclude_domains) / (shard.bytes * part) * size)
        estimate = round(characters * tokens / max(read, 1))
        return Survey(estimate, False, speed, len(texts), holding, dict(special.most_common()), without_text)
    finally:
        cache.drop(shard, group)
