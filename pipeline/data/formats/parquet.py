"""Parquet: a record is a row, its text in a column; row groups make it possible to begin in the middle.

Only the columns of the text and the domain are read. A column that is missing or of another type is no damage of the
file: the footer says what the writer meant. Parquet itself checks little: a page has a checksum only where
the writer was asked for one (it is verified then), so that flips are seen by the manifest's sha256 or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.damage import naming, require_documents
from pipeline.data.formats.jsonl import domain_of
from pipeline.data.instructions import Form
from pipeline.data.texts import NAMED, NoText, text_of
from pipeline.errors import RegrowError

#: Rows decoded at a time.
BATCH = 256
#: A file as writers with more processes than rows leave it.
NO_ROWS = "a whole parquet file without a row"
#: Where SlimPajama keeps a document's domain.
META, DOMAIN = "meta", "redpajama_set_name"


def read_parquet(
    path: Path, text_key: str | Form = "text", first: int = 0
) -> Iterator[tuple[int, str | NoText, str | None]]:
    """(index, text, domain) of every row from ``first`` on, in file order; row groups before it are not read.

    The text is the string column ``text_key``, which leads into structs by dots (see ``text_path``), the domain the
    field ``redpajama_set_name`` of the column ``meta``, structs or JSON. Raises DamagedShard, and RegrowError where the
    file is whole and has no row, or no such column of strings.
    """
    import pyarrow
    import pyarrow.parquet

    documents = 0
    with naming(path, lambda: documents):
        group = -1
        try:
            with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
                counts = rows_of_groups(file.metadata)
                if not sum(counts):
                    raise RegrowError(f"shard {path}: {NO_ROWS}; take it out of the source")
                paths = text_paths(file.schema_arrow, text_key, str(path))
                columns = _columns(file.schema_arrow, list(paths))
                for group, rows in enumerate(counts):
                    end = documents + rows
                    if end <= first:
                        documents = end
                        continue
                    for batch in file.iter_batches(BATCH, [group], columns, use_threads=False):
                        for text, domain in zip(_texts(batch, text_key, paths), _domains(batch), strict=True):
                            if documents >= first:
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


def text_paths(schema: Any, text_key: str | Form, shard: str) -> dict[str, tuple[str, ...]]:
    """Of a text key, or of those of a form, the columns as ``text_path`` gives them; an input's only where it is there.

    Raises RegrowError as ``text_path`` does.
    """
    if isinstance(text_key, str):
        return {text_key: text_path(schema, text_key, shard)}
    optional = text_key.input
    there = [key for key in text_key.keys if key != optional or optional.partition(".")[0] in schema.names]
    return {key: text_path(schema, key, shard) for key in there}


def text_path(schema: Any, text_key: str, shard: str) -> tuple[str, ...]:
    """The column that holds the text, and the fields that lead to it where the column is a struct.

    ``text_key`` is a column's name, or else leads into structs by dots. RegrowError, naming ``shard``, where there is
    no such column or field, where several columns have its name or that of the domain's, and where it holds no strings.
    """
    top = text_key if text_key in schema.names else text_key.partition(".")[0]
    for name in (top, META):
        if schema.names.count(name) > 1:
            raise RegrowError(
                f"shard {shard}: {schema.names.count(name)} columns have the name {name!r}, and nothing "
                "tells which of them is meant; rename them"
            )
    path = (text_key,) if top == text_key else tuple(text_key.split("."))
    held = schema
    for name in path:
        if not _has_fields(held) or name not in (field.name for field in held):
            listed = ", ".join(name for name, _ in _leaves(schema))
            raise RegrowError(
                f"shard {shard}: no column {text_key!r}; set text_key of its source to one of those that "
                f"are there: {listed}"
            )
        found = held.field(name).type
        held = found
    if not _is_string(found):
        strings = ", ".join(name for name, kind in _leaves(schema) if _is_string(kind)) or "none"
        raise RegrowError(
            f"shard {shard}: the column {text_key!r} is of type {found}, and texts are read from string, large_string, "
            f"string_view and dictionaries of them; set text_key of its source to such a column ({strings}), or write "
            "this one as strings"
        )
    return path


def _has_fields(held: Any) -> bool:
    """Whether this is a schema or the type of a struct."""
    import pyarrow

    return isinstance(held, pyarrow.Schema | pyarrow.StructType)


def _leaves(held: Any, before: str = "") -> list[tuple[str, Any]]:
    """(key, type) of the first columns, and of the fields of structs in the place of these."""
    found: list[tuple[str, Any]] = []
    for field in held:
        found += (
            _leaves(field.type, f"{before}{field.name}.")
            if _has_fields(field.type)
            else [(f"{before}{field.name}", field.type)]
        )
    return found[:NAMED]


def _is_string(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _columns(schema: Any, keys: list[str]) -> list[str]:
    """The columns to read: those of the text, and the domain where there is one."""
    if META not in schema.names or META in keys:
        return keys
    meta = schema.field(META).type
    if _has_fields(meta):
        has_domain = meta.get_field_index(DOMAIN) >= 0
        return [*keys, f"{META}.{DOMAIN}"] if has_domain else keys
    return [*keys, META] if _is_string(meta) else keys


def _texts(batch: Any, text_key: str | Form, paths: Mapping[str, tuple[str, ...]]) -> Iterator[str | NoText]:
    """What each row of a batch has for text."""
    columns = {key: _strings(batch, where) for key, where in paths.items()}
    if isinstance(text_key, str):
        yield from (NoText("null") if text is None else text for text in columns[text_key])
        return
    for row in zip(*columns.values(), strict=True):
        yield text_of(dict(zip(columns, row, strict=True)), text_key)


def _strings(batch: Any, where: Sequence[str]) -> list[str | None]:
    """The texts of a batch; None for a null, also of a struct around the text."""
    import pyarrow.compute

    column = batch.column(where[0])
    return (pyarrow.compute.struct_field(column, list(where[1:])) if where[1:] else column).to_pylist()


def _domains(batch: Any) -> list[str | None]:
    if META not in batch.schema.names:
        return [None] * len(batch)
    return [domain_of({META: _parsed(meta)}) for meta in batch.column(META).to_pylist()]


def _parsed(meta: Any) -> Any:
    """What a string holds as JSON; None where it is none: a document without a domain, whatever the string is for."""
    try:
        return json.loads(meta) if isinstance(meta, str) else meta
    except (ValueError, RecursionError):
        return None
