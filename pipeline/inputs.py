"""Inputs: the one way from a config and its run's folder to text: corpus, held-out set, encoder, and what is drawn.

Whoever reads text asks here, so that all of them mean the same documents, the same rows and the same sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pipeline.config import Config
from pipeline.config.source import InstructionSection
from pipeline.data.corpus.calibration import calibration_sequences
from pipeline.data.corpus.overlap import read_hashes
from pipeline.data.instructions import Form
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard, read_manifest
from pipeline.data.sources import TextSource
from pipeline.data.stream.held_out import RowsAsked, held_out_rows
from pipeline.data.stream.loader import RowStream
from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import Begin, Identity, LaneCursor
from pipeline.data.stream.strands import Reading
from pipeline.data.tokens import Encoder, Encoding, about_encoder, tokenizer_hash
from pipeline.errors import RegrowError
from pipeline.files import read_json
from pipeline.following import begin_after
from pipeline.importance.linear import JUDGED_EVERY, sequences_for_maps
from pipeline.model.load import resolve_model
from pipeline.run import Run

#: Of stage data: hashes of the held-out documents, for what reads remote text later.
HELD_OUT_HASHES = "held_out.hashes"
#: Lanes that the text of linear maps is read in, at most: each opens a shard, and has few ends of documents in little
#: text.
MAP_LANES = 8


def read_encoding(config: Config, folder: Path) -> Encoding:
    """How documents become ids with the tokenizer in a model's ``folder``."""
    return Encoding(folder, config.data.separator, config.data.special_tokens, config.model.trust_remote_code)


def read_encoder(config: Config, folder: Path) -> Encoder:
    """The encoder of documents with the tokenizer in a model's ``folder``."""
    return read_encoding(config, folder).load()


def text_source(config: Config, key: str) -> TextSource:
    """What the config asks of the source that stands at ``key``, one of ``DataSection.texts``."""
    source = config.data.texts[key]
    return TextSource(
        source.path,
        0 if key == "data.held_out" else int(key.rpartition(".")[2]),
        files=source.files,
        format="auto" if source.format == "instruction" else source.format,
        revision=source.revision,
        text_key=_form(source.instruction) if source.format == "instruction" else source.text_key,
        exclude_domains=source.exclude_domains,
        on_damage=config.data.on_damage,
        on_no_text=config.data.on_no_text,
        key=key,
    )


def _form(asked: InstructionSection) -> Form:
    return Form(asked.instruction_key, asked.input_key, asked.response_key, asked.template, asked.template_with_input)


def held_out_asked(config: Config) -> list[RowsAsked]:
    """The held-out rows that the stages will ask for: of prune where it measures, of train, of evaluate."""
    prune, protocol = config.prune, config.evaluate.perplexity.held_out
    trained = RowsAsked("data.row_length", config.data.row_length, "document")
    judged = RowsAsked("evaluate.perplexity.held_out.length", protocol.length, protocol.bos)
    compared = RowsAsked("prune.compare.length", prune.compare.length, protocol.bos)
    return [
        trained,
        replace(trained, bos=protocol.bos) if protocol.length is None else judged,
        *([compared] if prune.runs_model else []),
    ]


class Inputs:
    """The text of one run. Each part is loaded when it is first asked for, and once.

    ``model``: the folder whose tokenizer is meant, the dense model's unless another is named. The manifest is there
    once stage data is done; encoder and cache need nothing of the run.
    """

    def __init__(self, config: Config, run: Run, model: Path | None = None):
        self.config, self.run, self._model = config, run, model

    @cached_property
    def model(self) -> Path:
        """The folder of the tokenizer's model."""
        return self._model or resolve_model(self.config.model.path, self.config.model.revision)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of documents."""
        return read_encoder(self.config, self.model)

    @cached_property
    def cache(self) -> ShardCache:
        """Where copies of remote shards stand, within the size that the config allows."""
        return ShardCache(self.config.data.cache, limit=self.config.data.cache_size)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What stage data wrote, as it stands in the file."""
        return read_json(self.run.stage("data") / "manifest.json")

    @cached_property
    def _shards(self) -> tuple[list[Shard], list[Shard]]:
        return read_manifest(self.manifest)

    @property
    def corpus(self) -> list[Shard]:
        """The shards that are trained on."""
        return self._shards[0]

    @property
    def held_out(self) -> list[Shard]:
        """The shards that models are judged on; none where nothing is held out."""
        return self._shards[1]

    @property
    def shard_names(self) -> list[list[str]]:
        """Names of the corpus's shards, by source: what a cursor's numbers mean."""
        count = 1 + max(shard.source for shard in self.corpus)
        return [[shard.name for shard in self.corpus if shard.source == source] for source in range(count)]

    @property
    def lanes(self) -> int:
        """Lanes of the training rows: as the config states them, or as stage data chose."""
        stated = self.config.data.lanes
        return self.manifest["lanes"] if stated == "auto" else stated

    @property
    def _weights(self) -> tuple[float, ...]:
        return tuple(source.weight for source in self.config.data.sources)

    @cached_property
    def identity(self) -> Identity:
        """What fixes the training rows: a checkpoint of another identity holds a position in another stream."""
        return Identity(
            lanes=self.lanes,
            row_length=self.config.data.row_length,
            seed=self.config.data.seed,
            weights=self._weights,
            manifest=self.manifest["hash"],
            tokenizer=tokenizer_hash(self.encoder.tokenizer),
            bos=self.encoder.bos,
            separator=self.encoder.separator,
            special_tokens=self.encoder.special_tokens,
        )

    @cached_property
    def begin(self) -> Begin:
        """Where the training rows begin: at the first, or behind those of the run that ``data.after`` names."""
        return begin_after(self.config, self.identity)

    def stream(
        self,
        *,
        step: int = 0,
        start: int | None = None,
        cursors: Mapping[int, LaneCursor] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> RowStream:
        """The training rows of one rank of so many ``processes`` behind update number ``step``, or from row ``start``
        on, at which the lanes stand at ``cursors``, and those without one where the run began."""
        return RowStream(
            self.corpus,
            self._reading(self.config.data.seed, self.config.data.row_length, self.cache),
            lanes=self.lanes,
            weights=self._weights,
            rank=rank,
            processes=processes,
            start=self.begin.row + step * self.config.train.global_batch if start is None else start,
            cursors={**self.begin.cursors, **(cursors or {})},
        )

    def calibration(self) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """The calibration sequences (S, T) int64, and where each came from."""
        asked = self.config.score
        return calibration_sequences(
            self.corpus,
            self.encoder,
            sequences=asked.sequences,
            length=asked.length,
            bos=asked.bos,
            seed=asked.seed,
            cache=self.cache,
        )

    def for_maps(self, width: int) -> torch.Tensor:
        """Sequences for linear maps of ``width`` x ``width``: (N, T) int64, of which ``split_for_maps`` keeps a part
        to judge them by."""
        asked, count = self.config.score, self.count_for_maps(width)
        # Lanes read documents of their own: those that judge, one in JUDGED_EVERY, read none that is fitted on, unless
        # data.lanes are fewer. Packed in rows of this length: data.row_length may change when score and prune are done.
        lanes = min(self.lanes, count, MAP_LANES)
        lanes -= lanes % JUDGED_EVERY if lanes > JUDGED_EVERY else 0
        return self._of_rows(count, asked.length, asked.seed, asked.length, lanes, once=True)

    def count_for_maps(self, width: int) -> int:
        """How many sequences linear maps of ``width`` x ``width`` take."""
        return self.config.score.linear_sequences or sequences_for_maps(width, self.config.score.length)

    def for_healing(self) -> torch.Tensor:
        """Sequences that a pruned model is healed on, (N, T) int64, those that judge it included."""
        asked, row_length = self.config.train.healing, self.config.data.row_length
        # Each lane opens a shard: no more of them than rows.
        lanes = min(self.lanes, -(-asked.sequences * asked.length // row_length))
        return self._of_rows(asked.sequences, asked.length, asked.seed, row_length, lanes)

    def _of_rows(
        self, sequences: int, length: int, seed: int, row_length: int, lanes: int, once: bool = False
    ) -> torch.Tensor:
        """Text to fit weights on: (``sequences``, ``length``) int64.

        It is packed as training packs its rows, of the same corpus, in the order of a seed: what stands between
        documents must be met here. (Fitted on crops of single documents, by healing or with linear maps, SmolLM2-135M
        without 14 blocks failed behind every separator.) Rows follow one another, without the padding of instruction
        data, and are cut at every ``length``. Shards that must be fetched have a folder of their own; no copy stays.
        ``once``: RegrowError where a lane comes to the end of its text and would begin it again.
        """
        data = self.config.data
        found, missing = [], sequences * length
        remote = any(shard.kind != "local" for shard in self.corpus)
        place = data.cache if remote else None
        if remote:
            data.cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="fitting-", dir=place, ignore_cleanup_errors=True) as own:
            reading = self._reading(seed, row_length, ShardCache(Path(own), limit=data.cache_size))
            for row in RowStream(self.corpus, reading, lanes=lanes, weights=self._weights):
                if once and all(cursor.epoch for cursor in row.cursor.cursors):
                    raise RegrowError(
                        f"score.linear_sequences {sequences:,} of {length} tokens (score.length) are more text than "
                        "the corpus has for linear maps, which are judged on what they were not fitted on; lower them, "
                        "or add text to data.sources"
                    )
                found.append(_without_padding(row)[:missing])
                missing -= len(found[-1])
                if not missing:
                    break
        return torch.from_numpy(np.concatenate(found).astype(np.int64)).view(sequences, length)

    def _reading(self, seed: int, row_length: int, cache: ShardCache) -> Reading:
        """How documents become rows, in the order of a seed."""
        return Reading(
            encode=self.encoder,
            row_length=row_length,
            seed=seed,
            cache=cache,
            on_damage=self.config.data.on_damage,
            about=about_encoder(self.encoder),
            held_out=read_hashes(self.run.stage("data") / HELD_OUT_HASHES),
        )

    def held_out_rows(self, length: int, bos: str, rows: int | None) -> torch.Tensor | None:
        """Rows of the held-out set, (at most ``rows``, ``length``) int64, under the BOS policy ``bos``; None where
        nothing is held out."""
        if not self.held_out:
            return None
        return held_out_rows(self.held_out, self.encoder, length=length, bos=bos, rows=rows, cache=self.cache)


def _without_padding(row: Row) -> np.ndarray:
    """A row's ids up to the last that is a target, where targets are told."""
    if row.counted is None:
        return row.input_ids
    return row.input_ids[: int(np.flatnonzero(row.counted).max(initial=-1)) + 1]
