"""Documents: reading the texts of one shard, in file order, and refusing a damaged shard by name.

Decoders of compressed streams end quietly where a file was cut; here the end of every frame is checked, an empty
shard is an error, and every error says which shard and which document.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.run import RegrowError

ENDINGS = {".jsonl": "jsonl", ".jsonl.zst": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}


def format_of(name: str) -> str | None:
    """Format by a file's ending, or None when it is not a shard."""
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)


def read_documents(
    path: Path, format: str, text_key: str = "text", exclude_domains: Sequence[str] = (), first: int = 0
) -> Iterator[tuple[int, str]]:
    """(index in the shard, text) of every document from ``first`` on whose domain is not excluded.

    The index counts all documents, excluded ones too, so that it names the same document under every filter. The
    domain is ``meta.redpajama_set_name``, SlimPajama's field; documents without one are kept.
    Raises RegrowError naming the shard and the document on anything that cannot be read.
    """
    index = -1
    try:
        for index, record in enumerate(_records(path, format)):
            if index < first:
                continue
            text = record.get(text_key) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise RegrowError(f"shard {path}: document {index} has no text under the key {text_key!r}")
            meta = record.get("meta")
            domain = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
            if domain not in exclude_domains:
                yield index, text
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise RegrowError(f"shard {path}: damaged after document {index} ({error})") from error
    if index < 0:
        raise RegrowError(f"shard {path}: empty, not one document in it")


def count_documents(path: Path, format: str, text_key: str) -> int:
    """Number of documents, after decoding and checking every one."""
    return sum(1 for _ in read_documents(path, format, text_key))


def _records(path: Path, format: str) -> Iterator[Any]:
    if format == "parquet":
        yield from _parquet_records(path)
    else:
        for line in _lines(path):
            if line.strip():
                yield json.loads(line)


def _parquet_records(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(str(error)) from error


def _lines(path: Path) -> Iterator[bytes]:
    if path.name.endswith(".zst"):
        pieces = _zstd_pieces(path)
    elif path.name.endswith(".gz"):
        pieces = _plain_pieces(path, gzip.open)
    else:
        pieces = _plain_pieces(path, open)
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _plain_pieces(path: Path, opener: Any) -> Iterator[bytes]:
    with opener(path, "rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def _zstd_pieces(path: Path) -> Iterator[bytes]:
    """Decompressed pieces of every frame of a file; a frame that does not end is an error, not an end."""
    import zstandard

    with path.open("rb") as file:
        frame = None
        try:
            while piece := file.read(1 << 20):
                while piece:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(piece)
                    piece = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        if frame is not None:
            raise EOFError(f"the file ends inside a zstd frame, at byte {file.tell()}")
