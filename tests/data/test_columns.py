"""Parquet: reading from any row of any row group, reading nothing before it, and refusing what has no text."""

from __future__ import annotations

import contextlib

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data.columns import read_columns, row_groups
from pipeline.data.documents import DamagedShard, read_documents


def table_of(texts) -> pyarrow.Table:
    return pyarrow.table({
        "id": list(range(len(texts))), "text": texts,
        "meta": [{"redpajama_set_name": "RedPajamaC4", "url": "x"}] * len(texts),
    })  # fmt: skip


@pytest.mark.parametrize("rows", [7, 100, 1000])
def test_rows_are_read_from_any_row_on(tmp_path, texts, rows):
    """Many row groups and a single one, smaller and larger than what is decoded at a time."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table_of(texts[:600]), path, row_group_size=rows)
    expected = [(index, text, "RedPajamaC4") for index, text in enumerate(texts[:600])]
    for first in (0, 6, 7, 8, 99, 100, 256, 511, 599):
        assert list(read_columns(path, first=first)) == expected[first:], f"from row {first} on"
    assert row_groups(path) == tuple(min(rows, 600 - at) for at in range(0, 600, rows))


def test_row_groups_before_the_first_are_not_read(tmp_path, texts):
    """A flip in the first row group is met by who reads it, and by nobody else."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table_of(texts[:30]), path, row_group_size=10, write_page_checksum=True)
    begin = pyarrow.parquet.read_metadata(path).row_group(0).column(1).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[begin + 200] ^= 1
    path.write_bytes(data)
    assert [index for index, _, _ in read_columns(path, first=10)] == list(range(10, 30))
    with pytest.raises(DamagedShard, match=r"a\.parquet: damaged at document 0: .*(crc|CRC)"):
        list(read_columns(path, first=9))


@pytest.mark.parametrize("type", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
def test_other_kinds_of_strings_are_texts_too(tmp_path, type):
    table = pyarrow.table({"text": pyarrow.array(["a", "b"]).cast(type), "meta": ["no struct", None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert list(read_columns(tmp_path / "a.parquet")) == [(0, "a", None), (1, "b", None)]


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    for values, document in ((["a", None], 1), ([b"a"], 0), ([1], 0)):
        pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)
        with pytest.raises(DamagedShard, match=rf"damaged at document {document}: row group 0: no text in the column"):
            list(read_columns(path))
    with pytest.raises(DamagedShard, match=r"no column 'body' \(columns: text\)"):
        list(read_columns(path, "body"))


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
            read = [text for _, text, _ in read_columns(path)]
        except DamagedShard:
            continue
        assert len(read) == 6, f"a zero at byte {at}: {len(read)} of 6 documents, without an error"
        assert row_groups(path) == (2, 2, 2)
    assert shortened, "pyarrow sees a shortened footer by itself now"


@pytest.mark.parametrize("type", [pyarrow.string(), pyarrow.large_string(),
                                  pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])  # fmt: skip
def test_a_domain_in_a_string_of_json_is_filtered_by(tmp_path, type):
    """As parquet mirrors have it whose writers keep no structs; a string that is no JSON tells no domain."""
    metas = ['{"redpajama_set_name": "RedPajamaBook"}', '{"redpajama_set_name": "RedPajamaC4"}', "RedPajamaBook",
             '"RedPajamaBook"', '{"redpajama_set_name": ["RedPajamaBook"]}', "{}", None, "[" * 200_000]  # fmt: skip
    texts = [str(number) for number in range(len(metas))]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "meta": pyarrow.array(metas).cast(type)}), path)
    domains = [domain for _, _, domain in read_columns(path)]
    assert domains == ["RedPajamaBook", "RedPajamaC4", None, None, None, None, None, None]
    kept = [text for _, text in read_documents(path, "parquet", exclude_domains=["RedPajamaBook"])]
    assert kept == texts[1:]
