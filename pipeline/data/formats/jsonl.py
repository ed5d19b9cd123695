"""JSON Lines, plain or compressed with zstd or gzip: a record is a line that holds an object.

Decoders of compressed streams end quietly where a file was cut; here the end of every frame is checked. The writer
stores the size and the checksum of what it writes, which zstandard leaves out of a frame by default.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.data.damage import naming, require_documents
from pipeline.data.texts import NoText, text_of
from pipeline.files import replacing

#: Bytes for one read. Small enough that a file of many small frames is not copied over and over.
PIECE = 1 << 17


def read_jsonl(path: Path, text_key: str = "text", first: int = 0) -> Iterator[tuple[int, str | NoText, str | None]]:
    """(index, text, domain) of every record from ``first`` on, in file order; blank lines do not count.

    The compression is told from the ending, .zst or .gz; a file may have many frames. Records before ``first`` are
    decompressed and counted, not parsed. Raises DamagedShard.
    """
    documents = offset = 0
    place = "of the decompressed text" if path.name.endswith((".zst", ".gz")) else "of the file"
    with naming(path, lambda: documents):
        for line in _lines(path):
            if line and not line.isspace():
                if documents >= first:
                    try:
                        record = json.loads(line)
                        text = text_of(record, text_key)
                    except (ValueError, RecursionError) as error:
                        raise ValueError(f"the line at byte {offset} {place}: {error}") from None
                    yield documents, text, domain_of(record)
                documents += 1
            offset += len(line) + 1
    require_documents(path, documents, first)


def domain_of(record: Any) -> str | None:
    """SlimPajama's field ``meta.redpajama_set_name``, or None where a document has none."""
    meta = record.get("meta")
    domain = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
    return domain if isinstance(domain, str) else None


def write_jsonl_zst(path: Path, records: Iterable[Mapping[str, Any]], level: int = 9) -> None:
    """Write records as one zstd frame of JSON lines, with its size and checksum; ``path`` appears whole or not at all.

    One frame, because a cut between two frames could not be seen. The shard is held in memory while it is compressed.
    Raises RegrowError when the file cannot be written.
    """
    import zstandard

    lines = b"".join((json.dumps(record, ensure_ascii=False) + "\n").encode() for record in records)
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    with replacing(path) as temporary:
        temporary.write_bytes(compressor.compress(lines))


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their ends."""
    if path.name.endswith(".zst"):
        pieces = _zstd_pieces(path)
    elif path.name.endswith(".gz"):
        pieces = _gzip_pieces(path)
    else:
        pieces = _plain_pieces(path)
    held: list[bytes] = []
    for piece in pieces:
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0] = b"".join([*held, lines[0]])
            yield from lines
            held = []
        held.append(rest)
    yield b"".join(held)


def _plain_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _gzip_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as file:
        while True:
            try:
                piece = file.read(PIECE)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"the gzip stream, read up to byte {raw.tell()}: {error}") from error
            if not piece:
                return
            yield piece


def _zstd_pieces(path: Path) -> Iterator[bytes]:
    """Decompressed pieces of every frame of a file; a frame that does not end is an error, not an end."""
    import zstandard

    # As far as the format goes, with the size of memory that it names: --long=31.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    with path.open("rb") as file:
        frame, begin = None, 0
        try:
            while piece := file.read(PIECE):
                while piece:
                    frame = frame or decompressor.decompressobj()
                    yield frame.decompress(piece)
                    piece = frame.unused_data if frame.eof else b""
                    if frame.eof:
                        frame, begin = None, file.tell() - len(piece)
        except zstandard.ZstdError as error:
            raise ValueError(f"the zstd frame at byte {begin}: {error}") from error
        if frame is not None:
            raise EOFError(f"the file ends at byte {file.tell()}, inside the zstd frame at byte {begin}")
