"""Parquet: a document is a row, its text in a column; row groups make it possible to begin in the middle.

Only the columns of the text and the domain are read. Parquet itself checks little: a page has a checksum only where
the writer was asked for one (it is verified then), so that flips are seen by the manifest's sha256 or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.damage import naming, require_documents
from pipeline.data.jsonl import domain_of

#: Rows decoded at a time.
BATCH = 256


def read_columns(path: Path, text_key: str = "text", first: int = 0) -> Iterator[tuple[int, str, str | None]]:
    """(index, text, domain) of every row from ``first`` on, in file order; row groups before it are not read.

    The text is the string column ``text_key``, the domain the field ``redpajama_set_name`` of the column ``meta``,
    structs or JSON. Raises DamagedShard.
    """
    import pyarrow
    import pyarrow.parquet

    documents = 0
    with naming(path, lambda: documents):
        group = -1
        try:
            with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
                columns = _columns(file.schema_arrow, text_key)
                for group, rows in enumerate(rows_of_groups(file.metadata)):
                    end = documents + rows
                    if end <= first:
                        documents = end
                        continue
                    for batch in file.iter_batches(BATCH, [group], columns, use_threads=False):
                        for text, domain in zip(batch.column(text_key).to_pylist(), _domains(batch), strict=True):
                            if documents >= first:
                                if not isinstance(text, str):
                                    raise ValueError(f"row group {group}: no text in the column {text_key!r}")
                                yield documents, text, domain
                            documents += 1
                    if documents != end:
                        raise ValueError(f"row group {group}: it ends at row {documents}, the footer says {end}")
        except pyarrow.ArrowException as error:
            raise ValueError(f"row group {group}: {error}" if group >= 0 else str(error)) from error
    require_documents(path, documents, first)


def row_groups(path: Path) -> tuple[int, ...]:
    """Rows of each row group, from the footer alone. Raises DamagedShard."""
    import pyarrow.parquet

    with naming(path, lambda: 0):
        return rows_of_groups(pyarrow.parquet.read_metadata(path))


def rows_of_groups(footer: Any) -> tuple[int, ...]:
    """Rows of each row group, from a footer that was read; ValueError where they are not all that it says it has.

    The footer has no checksum: a flip in it can end the list of row groups early, and pyarrow reads what is left.
    """
    rows = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    if sum(rows) != footer.num_rows or min(rows, default=0) < 0:
        raise ValueError(f"the footer says {footer.num_rows} rows, its {len(rows)} row groups have {sum(rows)}")
    return rows


def _columns(schema: Any, text_key: str) -> list[str]:
    """The columns to read: the text, and the domain where there is one."""
    import pyarrow

    if text_key not in schema.names:
        raise ValueError(f"no column {text_key!r} (columns: {', '.join(schema.names[:8])})")
    if "meta" not in schema.names or text_key == "meta":
        return [text_key]
    meta, types = schema.field("meta").type, pyarrow.types
    if types.is_struct(meta):
        has_domain = meta.get_field_index("redpajama_set_name") >= 0
        return [text_key, "meta.redpajama_set_name"] if has_domain else [text_key]
    strings = meta.value_type if types.is_dictionary(meta) else meta
    return [text_key, "meta"] if types.is_string(strings) or types.is_large_string(strings) else [text_key]


def _domains(batch: Any) -> list[str | None]:
    if "meta" not in batch.schema.names:
        return [None] * len(batch)
    return [domain_of({"meta": _parsed(meta)}) for meta in batch.column("meta").to_pylist()]


def _parsed(meta: Any) -> Any:
    """What a string holds as JSON; None where it is none: a document without a domain, whatever the string is for."""
    try:
        return json.loads(meta) if isinstance(meta, str) else meta
    except (ValueError, RecursionError):
        return None
