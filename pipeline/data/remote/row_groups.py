"""Row groups of a remote parquet file: counted from its footer, and fetched one at a time.

The parquet mirrors of SlimPajama have files of several gigabytes. A lane's part of such a file is a row group: the
columns of the text and the domain are read with one range request and written as a small parquet file of their own.
"""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.data.formats.parquet import META, rows_of_groups
from pipeline.data.instructions import Form
from pipeline.data.remote.servers import locate, read_range
from pipeline.data.shards import Shard
from pipeline.errors import RegrowError, first_line


class NotParquet(RegrowError):
    """Bytes that are not the parquet they should be; whoever knows the shard names it."""


#: Bytes read from the end in the hope that the footer is in them.
TAIL = 1 << 16


def read_footer(file_system: Any, path: str, size: int) -> bytes:
    """The footer of a remote parquet file of ``size`` bytes; NotParquet where it has none."""
    tail = read_range(file_system, path, max(0, size - TAIL), size, size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > size:
        raise NotParquet("no parquet footer at its end")
    if length > len(tail):
        tail = read_range(file_system, path, size - length, size, size)
    return tail[-length:]


def parse_footer(footer: bytes) -> Any:
    """pyarrow's FileMetaData of a footer; NotParquet where it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(pyarrow.BufferReader(footer))
    except (pyarrow.ArrowException, OSError) as error:
        raise NotParquet(f"its parquet footer cannot be read ({first_line(error)})") from None


def row_counts(metadata: Any) -> tuple[int, ...]:
    """Documents of each row group. NotParquet where the footer's counts do not agree."""
    try:
        return rows_of_groups(metadata)
    except ValueError as error:
        raise NotParquet(f"its parquet footer is damaged: {error}") from None


def fetch_row_group(shard: Shard, group: int, part: Path, stalled: float) -> str:
    """Row group ``group`` of a remote shard into the parquet file ``part``; the sha256 of the bytes that came.

    ``stalled``: seconds without a byte after which a server counts as stalled. Raises NotParquet.
    """
    file_system, path = locate(shard, stalled)
    return _fetch_group(file_system, path, shard.bytes, _metadata(shard, stalled), group, shard.text_key, part)


@lru_cache(maxsize=64)
def _metadata(shard: Shard, stalled: float) -> Any:
    """The footer of a remote parquet shard, read once in a process; NotParquet unless it is the manifest's."""
    file_system, path = locate(shard, stalled)
    metadata = parse_footer(read_footer(file_system, path, shard.bytes))
    if row_counts(metadata) != shard.groups:
        raise NotParquet("its row groups are not those of the manifest")
    return metadata


def _fetch_group(
    file_system: Any, path: str, size: int, metadata: Any, group: int, text_key: str | Form, part: Path
) -> str:
    """Write row group ``group`` to the parquet file ``part``; the sha256 of the bytes that came.

    NotParquet where they cannot be decoded. In memory: the row group, once as it lies in the file and once decoded.
    """
    import pyarrow
    import pyarrow.parquet

    described = metadata.row_group(group)
    chunks = [described.column(number) for number in range(described.num_columns)]
    keys = (text_key,) if isinstance(text_key, str) else text_key.keys
    wanted = [
        chunk for chunk in chunks if chunk.path_in_schema in keys or chunk.path_in_schema.partition(".")[0] == META
    ]
    lacking = [key for key in keys[:2] if not any(chunk.path_in_schema == key for chunk in wanted)]
    if lacking:
        raise NotParquet(f"no column {lacking[0]!r}")
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in wanted]
    start = min(starts)
    stop = max(begin + chunk.total_compressed_size for begin, chunk in zip(starts, wanted, strict=True))
    data = read_range(file_system, path, start, stop, size)
    try:
        window = pyarrow.PythonFile(_Window(start, data, size), "r")
        file = pyarrow.parquet.ParquetFile(window, metadata=metadata, page_checksum_verification=True)
        table = file.read_row_group(group, columns=[*keys, META], use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise NotParquet(f"it cannot be decoded ({first_line(error)})") from None
    pyarrow.parquet.write_table(
        table, part, compression="zstd", row_group_size=max(1, len(table)), write_page_checksum=True
    )
    return hashlib.sha256(data).hexdigest()


class _Window(io.RawIOBase):
    """A file of ``size`` bytes of which only those from ``start`` on that are in ``data`` can be read."""

    def __init__(self, start: int, data: bytes, size: int):
        self.start, self.data, self.size = start, data, size
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def read(self, length: int = -1) -> bytes:
        begin = self.place - self.start
        if begin < 0 or length < 0 or begin + length > len(self.data):
            raise OSError(f"bytes {self.place} to {self.place + length} are outside of its row group")
        self.place += length
        return self.data[begin : begin + length]
