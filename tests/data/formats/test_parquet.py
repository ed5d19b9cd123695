"""Parquet: reading from any row of any row group, reading nothing before it, and refusing what has no text."""

from __future__ import annotations

import contextlib

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.parquet import read_parquet, row_groups
from pipeline.data.texts import NoText
from pipeline.errors import RegrowError


def table_of(texts) -> pyarrow.Table:
    return pyarrow.table(
        {
            "id": list(range(len(texts))),
            "text": texts,
            "meta": [{"redpajama_set_name": "RedPajamaC4", "url": "x"}] * len(texts),
        }
    )


@pytest.mark.parametrize("rows", [7, 100, 1000])
def test_rows_are_read_from_any_row_on(tmp_path, texts, rows):
    """Many row groups and a single one, smaller and larger than what is decoded at a time."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table_of(texts[:600]), path, row_group_size=rows)
    expected = [(index, text, "RedPajamaC4") for index, text in enumerate(texts[:600])]
    for first in (0, 6, 7, 8, 99, 100, 256, 511, 599):
        assert list(read_parquet(path, first=first)) == expected[first:], f"from row {first} on"
    assert row_groups(path) == tuple(min(rows, 600 - at) for at in range(0, 600, rows))


def test_row_groups_before_the_first_are_not_read(tmp_path, texts):
    """A flip in the first row group is met by who reads it, and by nobody else."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table_of(texts[:30]), path, row_group_size=10, write_page_checksum=True)
    begin = pyarrow.parquet.read_metadata(path).row_group(0).column(1).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[begin + 200] ^= 1
    path.write_bytes(data)
    assert [index for index, _, _ in read_parquet(path, first=10)] == list(range(10, 30))
    with pytest.raises(DamagedShard, match=r"a\.parquet: damaged at document 0: .*(crc|CRC)"):
        list(read_parquet(path, first=9))


STRINGS = [
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()),
]


@pytest.mark.parametrize("type", STRINGS)
def test_other_kinds_of_strings_are_texts_too(tmp_path, type):
    table = pyarrow.table({"text": pyarrow.array(["a", "b"]).cast(type), "meta": ["no struct", None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert list(read_parquet(tmp_path / "a.parquet")) == [(0, "a", None), (1, "b", None)]


def refused(path, text_key="text") -> str:
    """What is said of a file that is not damaged."""
    with pytest.raises(RegrowError) as caught:
        list(read_parquet(path, text_key))
    assert not isinstance(caught.value, DamagedShard), "it is called damaged"
    return str(caught.value)


TYPES = {
    "binary": [b"a"],
    "int64": [1],
    "list<element: string>": [["a"]],
    "struct<a: string>": [{"a": "b"}],
    "null": pyarrow.nulls(1),
}


@pytest.mark.parametrize("type", TYPES)
def test_a_column_of_another_type_names_it_and_what_is_read(tmp_path, type):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TYPES[type], "body": ["x"]}), path)
    told = refused(path)
    assert f"a.parquet: the column 'text' is of type {type}, and texts are read from string, " in told, told
    assert "set text_key of its source to such a column" in told and "body" in told, told
    assert list(read_parquet(path, "body")) == [(0, "x", None)]


def test_a_null_is_a_record_without_text(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "c"]}), path, row_group_size=2)
    assert list(read_parquet(path)) == [(0, "a", None), (1, NoText("null"), None), (2, "c", None)]
    assert next(read_parquet(path, first=1)) == (1, NoText("null"), None)


@pytest.mark.parametrize("type", [pyarrow.string(), *STRINGS])
def test_a_key_leads_into_structs_unless_a_column_has_its_name(tmp_path, type):
    path = tmp_path / "a.parquet"
    inner = pyarrow.array(["x", None, "z"]).cast(type)
    inside = pyarrow.StructArray.from_arrays([inner, pyarrow.array([1, 2, 3])], ["text", "id"])
    meta = pyarrow.array([{"redpajama_set_name": "RedPajamaC4", "title": "t"}, None, {"redpajama_set_name": "B"}])
    table = pyarrow.table({"doc": inside, "deep": pyarrow.StructArray.from_arrays([inside], ["doc"]), "meta": meta})
    pyarrow.parquet.write_table(table, path)
    expected = [(0, "x", "RedPajamaC4"), (1, NoText("null"), None), (2, "z", "B")]
    assert list(read_parquet(path, "doc.text")) == list(read_parquet(path, "deep.doc.text")) == expected
    assert [text for _, text, _ in read_parquet(path, "meta.title")] == ["t", NoText("null"), NoText("null")]
    assert (
        "no column 'doc.body'; set text_key of its source to one of those that are there: doc.text, doc.id, deep"
        in (refused(path, "doc.body"))
    )
    pyarrow.parquet.write_table(table.append_column("doc.text", [["p", "q", "r"]]), path)
    assert [text for _, text, _ in read_parquet(path, "doc.text")] == ["p", "q", "r"], "the name itself comes first"


def test_two_columns_of_one_name_are_said(tmp_path):
    path = tmp_path / "a.parquet"
    for name in ("text", "meta"):
        arrays = [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["c"])]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=["text", "meta", name]), path)
        assert f"a.parquet: 2 columns have the name '{name}'" in refused(path)


def test_a_file_without_a_row_is_said_and_row_groups_without_one_are_passed_over(tmp_path):
    path, schema = tmp_path / "a.parquet", pyarrow.schema({"text": pyarrow.string()})
    some, none = pyarrow.table({"text": ["a", "b"]}, schema), pyarrow.table({"text": []}, schema)
    for tables, rows in (([], ()), ([none], (0,)), ([some, none, some], (2, 0, 2))):
        with pyarrow.parquet.ParquetWriter(path, schema) as file:
            for table in tables:
                file.write_table(table)
        assert sum(row_groups(path)) == sum(rows)
        if sum(rows):
            assert [text for _, text, _ in read_parquet(path)] == ["a", "b", "a", "b"]
        else:
            assert "a.parquet: a whole parquet file without a row" in refused(path)


def test_a_footer_that_lost_row_groups_is_refused(tmp_path):
    """The footer has no checksum. One zero in it can end the list of row groups, and pyarrow reads what is left."""
    path = tmp_path / "a.parquet"
    texts = ["a", "b", "c", "d", "e", "f"]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=2, store_schema=False)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    shortened = 0
    for at in range(len(data) - 8 - footer, len(data) - 8):
        path.write_bytes(data[:at] + b"\0" + data[at + 1 :])
        with contextlib.suppress(pyarrow.ArrowException, OSError):
            shortened += pyarrow.parquet.ParquetFile(path).read(["text"]).num_rows in (2, 4)
        try:
            read = [text for _, text, _ in read_parquet(path)]
        except RegrowError:
            continue
        assert len(read) == 6, f"a zero at byte {at}: {len(read)} of 6 documents, without an error"
        assert row_groups(path) == (2, 2, 2)
    assert shortened, "pyarrow sees a shortened footer by itself now"


@pytest.mark.parametrize(
    "type", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
)
def test_a_domain_in_a_string_of_json_is_filtered_by(tmp_path, type):
    """As parquet mirrors have it whose writers keep no structs; a string that is no JSON tells no domain."""
    metas = [
        '{"redpajama_set_name": "RedPajamaBook"}',
        '{"redpajama_set_name": "RedPajamaC4"}',
        "RedPajamaBook",
        '"RedPajamaBook"',
        '{"redpajama_set_name": ["RedPajamaBook"]}',
        "{}",
        None,
        "[" * 200_000,
    ]
    texts = [str(number) for number in range(len(metas))]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "meta": pyarrow.array(metas).cast(type)}), path)
    domains = [domain for _, _, domain in read_parquet(path)]
    assert domains == ["RedPajamaBook", "RedPajamaC4", None, None, None, None, None, None]
    kept = [text for _, text in read_documents(path, "parquet", exclude_domains=["RedPajamaBook"])]
    assert kept == texts[1:]
