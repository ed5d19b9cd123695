"""A small corpus of real text in the shapes that shards have, a server that misbehaves, a cache that waits little."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.tokens import Encoder, load_tokenizer, make_encoder
from tests.data.corpora import listing_of
from tests.data.server import SECRET, Server


def write_shard(path: Path, documents: list[Any]) -> Path:
    """One shard in the format that its ending names; a document that is a text gets the key ``text``.

    In a tar a text becomes KEY.txt with its domain in KEY.json, and any other document KEY.json alone.
    """
    records = [
        {"text": item, "meta": {"redpajama_set_name": "RedPajamaWikipedia"}} if isinstance(item, str) else item
        for item in documents
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode(
        "utf-8", "surrogatepass"
    )
    if path.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.name.endswith((".tar", ".tar.gz")):
        from webdataset import TarWriter

        with path.open("wb") as file, TarWriter(file, mtime=0, compress=path.name.endswith(".gz")) as tar:
            for number, (item, record) in enumerate(zip(documents, records, strict=True)):
                parts = {"txt": record.pop("text"), "json": record} if isinstance(item, str) else {"json": record}
                tar.write({"__key__": f"{number:06d}", **parts})
    elif path.name.endswith(".zst"):
        path.write_bytes(zstandard.ZstdCompressor(level=9, write_checksum=True).compress(lines))
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines, mtime=0))
    else:
        path.write_bytes(lines)
    return path


@pytest.fixture
def shard_of(tmp_path: Path) -> Callable[..., Path]:
    """``shard_of("a.jsonl.zst", documents)`` writes a shard under tmp_path/corpus."""
    return lambda name, documents: write_shard(tmp_path / "corpus" / name, documents)


@pytest.fixture
def corpus(texts: list[str], tmp_path: Path) -> list[Shard]:
    """Five shards of 12 to 16 real documents in several formats; the first document of each is a long one."""
    long = "\n\n".join(texts[:20])
    endings = ("jsonl.zst", "jsonl", "parquet", "jsonl.gz", "jsonl.zst")
    for number, ending in enumerate(endings):
        first = 100 + 20 * number
        write_shard(
            tmp_path / "corpus" / f"part_{number}.{ending}", [f"{number} {long}", *texts[first : first + 11 + number]]
        )
    return listing_of(str(tmp_path / "corpus")).shards


@pytest.fixture
def parquet(texts: list[str], tmp_path: Path) -> Path:
    """80 documents in row groups of 30, 30 and 20, and a column that nobody reads."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}, "noise": os.urandom(3000)} for text in texts[:80]
    ]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=30, write_page_checksum=True)
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> ShardCache:
    """Five attempts, milliseconds between them, and a server counts as stalled after a quarter of a second."""
    return ShardCache(tmp_path / "cache", attempts=5, wait=0.002, stalled=0.25, say=said.append)


@pytest.fixture
def remote(server: Server, corpus: list[Shard], tmp_path: Path) -> Callable[..., Shard]:
    """``remote(n)``: shard n of the corpus, on the server; with ``hashed`` its sha256 is known beforehand."""

    def put(number: int, hashed: bool = True) -> Shard:
        shard = corpus[number]
        server.files[f"/c/{shard.path}"] = (tmp_path / "corpus" / shard.path).read_bytes()
        listed = listing_of(f"{server.address}/c/{shard.path}?Signature={SECRET}").shards[0]
        server.requests.clear()
        return replace(listed, sha256=shard.sha256) if hashed else listed

    return put


@pytest.fixture
def right(server: Server) -> Callable[[Path, Shard], bool]:
    """``right(path, shard)``: the file has the bytes that the server has for the shard."""
    return lambda path, shard: path.read_bytes() == server.files["/c/" + shard.path.partition("?")[0]]


@pytest.fixture
def encoder(tiny_model: Path) -> Encoder:
    """An encoder that puts a BOS before each document, as Llama's does."""
    tokenizer = load_tokenizer(tiny_model)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return make_encoder(tokenizer)


@pytest.fixture
def bytes_encoder() -> Encoder:
    """A token for each byte, and a BOS before each document: ids that no training of a tokenizer can change."""
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return make_encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"))
