"""A small corpus of real text in the shapes that shards have, a server that misbehaves, a cache that waits little."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.tokens import Encoder, load_tokenizer, make_encoder
from tests.data.ahead import tokenise_into
from tests.data.corpora import listing_of, write_shard
from tests.data.server import SECRET, Server


@pytest.fixture
def shard_of(tmp_path: Path) -> Callable[..., Path]:
    """``shard_of("a.jsonl.zst", documents)`` writes a shard under tmp_path/corpus."""
    return lambda name, documents: write_shard(tmp_path / "corpus" / name, documents)


@pytest.fixture
def corpus(texts: list[str], tmp_path: Path) -> list[Shard]:
    """Five shards of 12 to 16 real documents in several formats; the first document of each is a long one."""
    long = "\n\n".join(texts[:20])
    endings = ("jsonl.zst", "jsonl", "parquet", "jsonl.gz", "tar.gz")
    for number, ending in enumerate(endings):
        first = 100 + 20 * number
        documents = [f"{number} {long}", *texts[first : first + 11 + number]]
        write_shard(tmp_path / "corpus" / f"part_{number}.{ending}", documents)
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


@pytest.fixture
def tokenise(tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """``tokenise(shards, **changes)`` to tmp_path/made."""
    return lambda shards, **changes: tokenise_into(tmp_path / "made", shards, **{"tokenizer": tiny_model, **changes})
