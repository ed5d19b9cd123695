"""Small corpora of real text for the tests of the stream, and ways to read one as many processes would.

Not a test, and light: the processes of test_topology import it too.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard

from pipeline.data.corpus.listing import Listing, list_source
from pipeline.data.formats.documents import check_documents, format_of
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.instructions import Form
from pipeline.data.remote.cache import ShardCache
from pipeline.data.remote.servers import Patience
from pipeline.data.shards import Shard
from pipeline.data.sources import TextSource
from pipeline.data.stream.lanes import Lane, Mixture
from pipeline.data.stream.loader import RowStream, load_rows
from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import LaneCursor
from pipeline.data.stream.strands import Reading
from pipeline.files import hash_file
from pipeline.launch import die_with_parent

LANES = 12
#: What a stream is told beside its reading.
STREAM = ("lanes", "weights", "rank", "processes", "start", "cursors")
ENDINGS = {"jsonl": ".jsonl.zst", "tar": ".tar", "parquet": ".parquet", "tokenised": ".tar"}


def encode(text: str) -> list[int]:
    """Ids of a text without a tokenizer: its bytes, and 256 behind them."""
    return [*text.encode(), 256]


def write_shard(path: Path, documents: Sequence[Any], *, group: int | None = None, tokenised: bool = False) -> Path:
    """One shard in the format that its ending names; parquet in row groups of ``group``, tar tokenised if asked.

    A document that is a text gets the key ``text`` and a domain; in a tar it becomes KEY.txt, with its domain in
    KEY.json. Any other document is a record as it stands; in a tar, KEY.json alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"meta": {"redpajama_set_name": "RedPajamaWikipedia"}}
    records = [{"text": item, **about} if isinstance(item, str) else item for item in documents]
    # As a writer leaves it that does not look: half of a surrogate pair too.
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode(errors="surrogatepass")
    if tokenised:
        write_tokenised(path, map(encode, documents), about={"vocabulary": 257})
    elif path.name.endswith((".tar", ".tar.gz")):
        from webdataset import TarWriter

        with path.open("wb") as file, TarWriter(file, mtime=0, compress=path.suffix == ".gz") as tar:
            for number, item in enumerate(documents):
                parts = {"txt": item, "json": about} if isinstance(item, str) else {"json": item}
                tar.write({"__key__": f"{number:06d}", **parts})
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=group)
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.ZstdCompressor(level=9, write_checksum=True).compress(lines))
    else:
        path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines)
    return path


def shard(path: Path, source: int = 0, *, tokenised: bool = False, text_key: str | Form = "text") -> Shard:
    """A local file as the manifest has it."""
    format = "tokenised" if tokenised else format_of(path.name)
    census = check_documents(path, format, text_key)
    return Shard(
        source=source,
        place=str(path.parent),
        path=path.name,
        kind="local",
        revision=None,
        format=format,
        bytes=path.stat().st_size,
        sha256=hash_file(path),
        etag=None,
        documents=census.documents,
        groups=census.groups,
        text_key=text_key,
        exclude_domains=(),
    )


def two_sources(folder: Path, texts: Sequence[str], kind: str) -> list[Shard]:
    """14 small shards, two of which have documents of many rows, and 3 larger ones that must be cut for 12 lanes."""
    short = [text[:200] for text in texts]
    shards = []
    for number in range(17):
        source, first = (0, 10 * number) if number < 14 else (1, 400 + 20 * number)
        documents = short[first : first + (3 + number % 4 if source == 0 else 8 + number % 3)]
        if number in (3, 15):
            documents[1] = " ".join(texts[700 + number : 710 + number])[:700]
        if number in (5, 16):
            documents[2] = ""
        path = write_shard(
            folder / f"{'ab'[source]}_{number:02d}{ENDINGS[kind]}", documents, group=4, tokenised=kind == "tokenised"
        )
        shards.append(shard(path, source, tokenised=kind == "tokenised"))
    return shards


def listing_of(path: Path | str, *, attempts: int = 8, wait: float = 1.0, say=lambda line: None, **asked) -> Listing:
    """``list_source`` with the settings of the source, of its patience and of its work in one."""
    work = {name: asked.pop(name) for name in ("held_out", "hash_of", "done") if name in asked}
    return list_source(TextSource(str(path), **asked), patience=Patience(attempts, wait, say), say=say, **work)


def reading_of(cache: Path | ShardCache, **more) -> Reading:
    """Rows of 64 tokens of plain bytes."""
    own = cache if isinstance(cache, ShardCache) else ShardCache(cache)
    return Reading(**{"encode": encode, "row_length": 64, "seed": 0, "cache": own, **more})


def row_stream(shards: Sequence[Shard], cache: Path | ShardCache, **more) -> RowStream:
    """A stream from settings of its reading and its own, in one."""
    own = {name: more.pop(name) for name in STREAM if name in more}
    return RowStream(shards, reading_of(cache, **more), **own)


def stream(shards: Sequence[Shard], cache: Path, **more) -> RowStream:
    """Rows of 64 tokens from 12 lanes, with one weight for each source."""
    sources = 1 + max(shard.source for shard in shards)
    return row_stream(shards, cache, **{"lanes": LANES, "weights": (0.7, 0.3)[:sources], **more})


def lane(shards, cache, number=0, *, lanes=4, row=0, cursor=None, **more) -> Lane:
    """One lane of its own, from its row number ``row`` on."""
    how = reading_of(cache, **more)
    return Lane(number, Mixture.of(shards, lanes, None, how), how, row=row, cursor=cursor)


def together(shards: Sequence[Shard], cache: Path, processes: int, workers: int, *, real: bool = False, **more):
    """An iterator of the rows of so many ``processes``, in the order in which they hand them out.

    ``real``: each rank in this process, its workers processes of their own; otherwise the workers are here too.
    """

    def rank_of(one: RowStream) -> Iterator[Row]:
        if real or workers == 0:
            yield from load_rows(one, workers, die_with_parent)
        parts = [one.rows_of(worker, workers) for worker in range(workers)]
        while True:
            yield from map(next, parts)

    ranks = [rank_of(stream(shards, cache, rank=rank, processes=processes, **more)) for rank in range(processes)]
    while True:
        yield from map(next, ranks)


def take(rows: Iterator[Row], count: int) -> list[Row]:
    """The next ``count`` rows."""
    return list(islice(rows, count))


def fingerprint(row: Row) -> tuple:
    """All that a row is, to be compared."""
    counted = None if row.counted is None else row.counted.tobytes()
    return row.index, row.lane, row.cursor, row.input_ids.tobytes(), row.cu_seqlens.tobytes(), counted


def differs(rows: Sequence[Row], expected: Sequence[Row]) -> str | None:
    """Where two reads differ first, in words; None when they do not."""
    if len(rows) != len(expected):
        return f"{len(rows)} rows instead of {len(expected)}"
    for row, wanted in zip(rows, expected, strict=True):
        if fingerprint(row) != fingerprint(wanted):
            return f"row {wanted.index} came as {row.index}, behind it {row.cursor} instead of {wanted.cursor}"
    return None


def cursors_behind(rows: Sequence[Row], before: dict[int, LaneCursor] | None = None) -> dict[int, LaneCursor]:
    """Each lane's cursor when these rows have been consumed."""
    return {**(before or {}), **{row.lane: row.cursor for row in rows}}


def digest(row: Row) -> str:
    """A short hash of a row's tokens and documents."""
    return hashlib.sha256(row.input_ids.tobytes() + row.cu_seqlens.tobytes()).hexdigest()[:16]


def flip(each: Shard) -> bytes:
    """Flip a bit of a shard where it lies; its bytes as they were."""
    path = Path(each.name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 8]) + data[len(data) // 2 + 1 :])
    return data
