"""The readers that data.py times on one corpus, and the corpus in the three ways that they read it.

A reader gives ``rows()`` without end, and ``resume(position)`` from what ``position(count)`` saved behind so many rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import webdataset

from pipeline.data.formats.jsonl import write_jsonl_zst
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.stream.loader import RowStream, load_rows
from pipeline.data.stream.position import LaneCursor, from_json, to_json
from pipeline.data.stream.strands import Reading
from pipeline.data.tokens import Encoder, about_encoder
from pipeline.launch import die_with_parent

#: Texts in a call of the bare tokenizer; rows in a call of the maps of datasets (its default).
BATCH = 1000


def write_corpora(texts: Sequence[str], folder: Path, encode: Encoder, shards: int, repeat: int) -> None:
    """The corpus as jsonl.zst, tars and tokenised shards: ``shards`` files with ``repeat`` times all texts in each."""
    about = about_encoder(encode)
    ids = [encode(text) for text in texts]
    for number in range(shards):
        order = [index for _ in range(repeat) for index in range(len(texts))]
        random.Random(number).shuffle(order)
        write_jsonl_zst(folder / "text" / f"{number}.jsonl.zst", ({"text": texts[index]} for index in order))
        tar = folder / "tar" / f"{number}.tar"
        tar.parent.mkdir(exist_ok=True)
        with webdataset.TarWriter(str(tar)) as file:
            for place, index in enumerate(order):
                file.write({"__key__": f"{place:08d}", "txt": texts[index]})
        write_tokenised(folder / "tokenised" / f"{number}.tar", (ids[index] for index in order), about=about)


def write_synthetic(folder: Path, shards: int, tokens: int) -> None:
    """Tokenised shards of at least ``tokens`` random tokens in all, in documents of 1 to 1,200."""
    draw = np.random.default_rng(0)
    for number in range(shards):
        lengths = draw.integers(1, 1200, tokens // shards // 600 + 100)
        documents = (draw.integers(0, 49152, length, dtype=np.uint16) for length in lengths)
        write_tokenised(folder / f"{number}.tar", documents, about={"vocabulary": 49152})


class Ours:
    """Rows of the stream, and resuming it."""

    def __init__(self, shards: Sequence[Shard], encode: Encoder, row_length: int, cache: Path):
        self.shards = shards
        self.reading = Reading(encode, row_length, seed=0, cache=ShardCache(cache))

    def stream(self, start: int = 0, cursors: Mapping[int, LaneCursor] | None = None) -> RowStream:
        """The rows behind the first ``start``, in as many lanes as there are shards."""
        return RowStream(self.shards, self.reading, lanes=len(self.shards), start=start, cursors=cursors)

    def rows(self) -> Iterator[np.ndarray]:
        for row in load_rows(self.stream(), 0, die_with_parent):
            yield row.input_ids

    def position(self, count: int) -> tuple[int, str]:
        """The position behind ``count`` rows, as a checkpoint keeps it."""
        cursors = {row.lane: row.cursor for row in islice(self.stream(), count)}
        return count, json.dumps(to_json(cursors))

    def resume(self, position: tuple[int, str]) -> None:
        """Read the first row of every lane."""
        start, cursors = position
        stream = self.stream(start, from_json(json.loads(cursors)))
        for _ in islice(stream, len(self.shards)):
            pass


class Datasets:
    """The same text through datasets: streaming, tokenised and packed by batched maps."""

    def __init__(self, folder: Path, encode: Encoder, row_length: int):
        self.files = sorted(map(str, folder.glob("*.jsonl.zst")))
        self.encode, self.row_length = encode, row_length

    def build(self) -> Any:
        tokenizer, separator, length = self.encode.tokenizer, self.encode.separator, self.row_length

        def tokenise(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            ids = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
            return {"input_ids": [[*document, separator] for document in ids]}

        def group(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            joined = list(chain.from_iterable(batch["input_ids"]))
            return {"input_ids": [joined[i : i + length] for i in range(0, len(joined) - length + 1, length)]}

        stream = datasets.load_dataset("json", data_files=self.files, split="train", streaming=True)
        stream = stream.map(tokenise, batched=True, batch_size=BATCH, remove_columns=["text"])
        return stream.map(group, batched=True, batch_size=BATCH)

    def rows(self) -> Iterator[np.ndarray]:
        while True:
            for row in self.build():
                yield np.asarray(row["input_ids"])

    def position(self, count: int) -> dict[str, Any]:
        stream = self.build()
        for _ in islice(stream, count):
            pass
        return stream.state_dict()

    def resume(self, position: dict[str, Any]) -> None:
        stream = self.build()
        stream.load_state_dict(position)
        next(iter(stream))


class Webdataset:
    """The same text through webdataset: tars, tokenised and packed as they come."""

    def __init__(self, folder: Path, encode: Encoder, row_length: int):
        self.files = sorted(map(str, folder.glob("*.tar")))
        self.encode, self.row_length = encode, row_length

    def rows(self) -> Iterator[np.ndarray]:
        rest: list[int] = []
        while True:
            for sample in webdataset.WebDataset(self.files, shardshuffle=False).decode():
                rest += self.encode(sample["txt"])
                while len(rest) >= self.row_length:
                    yield np.asarray(rest[: self.row_length])
                    del rest[: self.row_length]

    def position(self, count: int) -> int:
        return count

    def resume(self, position: int) -> None:
        next(islice(self.rows(), position, None))


def bare(texts: Sequence[str], encode: Encoder, compiled: bool, size: int) -> Iterator[int]:
    """Tokens of ``size`` texts after the other, without end, from the tokenizer alone; with their separators."""
    for start in cycle(range(0, len(texts), size)):
        batch = texts[start : start + size]
        if compiled:
            ids = [found.ids for found in encode.engine.encode_batch_fast(batch, add_special_tokens=False)]
        else:
            ids = encode.tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        yield sum(map(len, ids)) + len(batch)
