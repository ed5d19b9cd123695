"""Rows: from a config and its run's folder to the training rows behind any step, and the identity of their stream.

Training reads them, and ``data-show`` looks at them afterwards: both must mean the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config import Config
from pipeline.data.fetching import ShardCache
from pipeline.data.loader import RowStream
from pipeline.data.overlap import read_hashes
from pipeline.data.position import Identity, LaneCursor
from pipeline.data.shards import read_manifest
from pipeline.data.tokenise import about_encoder
from pipeline.data.tokens import Encoder, load_tokenizer, make_encoder, tokenizer_hash
from pipeline.run import Run, read_json

#: Of stage data: hashes of the held-out documents, for what reads remote text later.
HELD_OUT = "held_out.hashes"


def row_encoder(config: Config, model: Path) -> Encoder:
    """The encoder of the rows, from a model's folder."""
    tokenizer = load_tokenizer(model, config.model.trust_remote_code)
    return make_encoder(tokenizer, config.data.separator, config.data.special_tokens)


def row_stream(
    config: Config,
    run: Run,
    encoder: Encoder,
    *,
    step: int = 0,
    cursors: Mapping[int, LaneCursor] | None = None,
    rank: int = 0,
    world: int = 1,
) -> RowStream:
    """The rows of one rank behind update number ``step``, at which the lanes stand at ``cursors``."""
    data = config.data
    corpus, _ = read_manifest(read_json(run.stage("data") / "manifest.json"))
    return RowStream(
        corpus,
        encode=encoder,
        lanes=data.lanes,
        row_length=data.row_length,
        seed=data.seed,
        cache=shard_cache(config),
        weights=_weights(config),
        on_damage=data.on_damage,
        about=about_encoder(encoder),
        held_out=read_hashes(run.stage("data") / HELD_OUT),
        rank=rank,
        world=world,
        start=step * config.train.global_batch,
        cursors=cursors,
    )


def shard_cache(config: Config) -> ShardCache:
    """Where copies of remote shards stand, within the size that the config allows."""
    return ShardCache(config.data.cache, limit=config.data.cache_size)


def row_identity(config: Config, run: Run, encoder: Encoder) -> Identity:
    """What fixes the rows of this run: a checkpoint of another identity holds a position in another stream."""
    return Identity(
        lanes=config.data.lanes,
        row_length=config.data.row_length,
        seed=config.data.seed,
        weights=_weights(config),
        manifest=read_json(run.stage("data") / "manifest.json")["hash"],
        tokenizer=tokenizer_hash(encoder.tokenizer),
        bos=encoder.bos,
        separator=encoder.separator,
        special_tokens=encoder.special_tokens,
    )


def shard_names(run: Run) -> list[list[str]]:
    """Names of the corpus's shards, by source: what a cursor's numbers mean."""
    corpus, _ = read_manifest(read_json(run.stage("data") / "manifest.json"))
    count = 1 + max(shard.source for shard in corpus)
    return [[shard.name for shard in corpus if shard.source == source] for source in range(count)]


def _weights(config: Config) -> tuple[float, ...]:
    return tuple(source.weight for source in config.data.sources)
