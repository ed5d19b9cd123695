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

from pipeline.data.damage import BadRecord, naming, require_documents
from pipeline.data.instructions import Form
from pipeline.data.texts import KINDS, NoText, is_unicode, text_of
from pipeline.errors import first_line
from pipeline.files import replacing

#: Bytes for one read. Small enough that a file of many small frames is not copied over and over.
PIECE = 1 << 17
WANTED = "one JSON object a line, in UTF-8,"
#: Characters of a line that a message shows.
SHOWN = 24


def read_jsonl(
    path: Path, text_key: str | Form = "text", first: int = 0
) -> Iterator[tuple[int, str | NoText, str | None]]:
    """(index, text, domain) of every record from ``first`` on, in file order; blank lines do not count.

    The compression is told from the ending, .zst or .gz; a file may have many frames. Records before ``first`` are
    decompressed and counted, not parsed. Raises DamagedShard, and BadRecord where a line holds no object.
    """
    documents = offset = 0
    place = "of the decompressed text" if path.name.endswith((".zst", ".gz")) else "of the file"
    with naming(path, lambda: documents):
        for line in _lines(path):
            if line and not line.isspace():
                if documents >= first:
                    try:
                        record = parse_object(line)
                    except (ValueError, RecursionError) as error:
                        at = f"the line at byte {offset} {place}"
                        raise BadRecord.at(path, documents, at, first_line(error), WANTED) from None
                    yield documents, text_of(record, text_key), domain_of(record)
                documents += 1
            offset += len(line) + 1
    require_documents(path, documents, first)


def count_records(path: Path) -> int:
    """Records of a whole file, without a look into them. Raises DamagedShard."""
    count = 0
    with naming(path, lambda: count):
        for line in _lines(path):
            count += bool(line) and not line.isspace()
    return count


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``, which is UTF-8. ValueError, or RecursionError, says what is there instead."""
    try:
        text = data.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
        record = _loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(why_no_utf8(data, error)) from None
    except json.JSONDecodeError as error:
        begins = repr(text[:SHOWN]) + "..." * (len(text) > SHOWN)
        raise ValueError(
            _wide_encoding(data) or f"no JSON ({error.msg}, at character {error.pos} of {begins})"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(f"{KINDS.get(type(record), 'a string')}, no object")
    return record


def why_no_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    """What bytes are that are not UTF-8: of another encoding where they show it, else where they fail."""
    return _wide_encoding(data) or f"not UTF-8 (byte 0x{data[error.start]:02x} at {error.start})"


def _wide_encoding(data: bytes) -> str | None:
    """The encoding of text that was written in units of 2 or 4 bytes; None where it does not look like that."""
    encoding = json.detect_encoding(data)
    return None if encoding.startswith("utf-8") or not any(data[:4]) else f"{encoding[:6].upper()}, not UTF-8"


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        # Python reads no whole number of more than 4,300 digits. No text is one, so that any other value will do.
        return json.loads(text, parse_int=float)


def domain_of(record: Any) -> str | None:
    """SlimPajama's field ``meta.redpajama_set_name``, or None where a document has none that can be written."""
    meta = record.get("meta")
    domain = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
    return domain if isinstance(domain, str) and is_unicode(domain) else None


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
