"""Reading shards: every format gives the same texts and numbers, leaves out what has no text, and refuses damage."""

from __future__ import annotations

import pickle
from typing import get_args

import pytest

from pipeline.config.tree import Source
from pipeline.data import sources
from pipeline.data.damage import BadRecord, DamagedShard
from pipeline.data.formats.documents import READERS, Census, check_documents, format_of, read_documents
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.errors import RegrowError

ENDINGS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "tar", "tar.gz")


def read(path, **more):
    return list(read_documents(path, format_of(path.name), **more))


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_reads_the_same_from_any_document_on(shard_of, texts, ending):
    documents = [*texts[:300], "line\nbreak \u2028 and \x85", "日本語 🌱", ""]
    path = shard_of(f"shard.{ending}", documents)
    expected = list(enumerate(documents))
    assert read(path) == expected, f"{ending} gives other documents"
    for first in (1, 255, 256, 257, len(documents) - 1, len(documents)):
        assert read(path, first=first) == expected[first:], f"{ending} read from document {first} on"
    with pytest.raises(DamagedShard, match=rf"{len(documents)} documents in it, and document {len(documents) + 1} "):
        read(path, first=len(documents) + 1)


def test_formats_are_told_by_the_ending():
    assert [format_of(f"a.b.{ending}") for ending in ENDINGS] == ["jsonl"] * 3 + ["parquet", "tar", "tar"]
    assert [format_of(name) for name in ("README.md", "x.json", "x.zst", "tar")] == [None] * 4
    assert tuple(sorted(ending[1:] for ending in sources.ENDINGS)) == ENDINGS, "an ending is not tried here"


def test_every_format_has_an_ending_and_a_name_in_the_config():
    assert set(sources.ENDINGS.values()) == set(READERS)
    named = get_args(Source.model_fields["format"].annotation)
    assert set(named) == {"auto", *READERS, "tokenised", "instruction"}, f"data.sources.format takes {named}"


@pytest.mark.parametrize("ending", ENDINGS)
def test_excluded_domains_keep_the_numbers_of_the_others(shard_of, ending):
    domains = ["RedPajamaBook", "RedPajamaC4", None, "RedPajamaBook", "RedPajamaArXiv"]
    records = [{"text": f"t{i}", "meta": {"redpajama_set_name": name}} for i, name in enumerate(domains)]
    records.append({"text": "t5 ü", "meta": None})
    path = shard_of(f"domains.{ending}", records)
    kept = read(path, exclude_domains=("RedPajamaBook", "RedPajamaArXiv"))
    assert kept == [(1, "t1"), (2, "t2"), (5, "t5 ü")], "the wrong documents were left out, or the rest renumbered"
    census = check_documents(path, format_of(path.name), "text")
    groups = (6,) if ending == "parquet" else None
    counts = {"RedPajamaArXiv": 1, "RedPajamaBook": 2, "RedPajamaC4": 1}
    characters = {name: 2 * count for name, count in counts.items()}
    assert census == Census(6, 14, counts, groups, characters_of=characters), (
        "the census leaves documents out, or counts wrongly"
    )
    assert census.characters_without(("RedPajamaBook", "RedPajamaArXiv")) == len("t1t2t5 ü")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_record_without_text_is_left_out_by_itself_and_counted(shard_of, texts, ending):
    """It keeps its number; a column has one type, so that of parquet only nulls and blank texts are tried."""
    odd = [{"text": None}, {"other": "x"}, {"text": ""}, {"text": " \n\t\u00a0"}]
    counts = {"no such key": 1, "null": 1, "empty": 1, "white space alone": 1}
    if ending == "parquet":
        counts = {"null": 2, "empty": 1, "white space alone": 1}
    else:
        odd += [{"text": 7}, {"text": 1.5}, {"text": ["a"]}, {"text": {"a": "b"}}, {"text": True}]
        counts |= {"a number": 2, "a list": 1, "an object": 1, "true or false": 1}
        odd += [{"text": "half \ud83d"}, {"text": "\udf31 half"}]
        counts |= {"half of a surrogate pair": 2}
    path = shard_of(f"odd.{ending}", [{"text": "first ü"}, *odd, {"text": "null"}, {"text": "None"}])
    last = len(odd) + 1
    found = [(index, text) for index, text in read(path) if text.strip()]
    assert found == [(0, "first ü"), (last, "null"), (last + 1, "None")], "documents are missing, or have other numbers"
    assert read(path, first=last) == found[1:], "a cursor behind records without text means another document"
    seen = []
    census = check_documents(path, format_of(path.name), "text", lambda index, text, _: seen.append((index, text)))
    assert seen == found, "whoever looks at documents sees those without text"
    assert (census.documents, census.characters) == (len(odd) + 3, 15)
    assert (census.without_text, census.first_without_text) == (counts, 1)
    with pytest.raises(RegrowError, match=rf"odd\.{ending}: a record without text \(null\), at record 1; .*on_no_text"):
        read(path, on_no_text="raise")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_wrong_text_key_names_the_keys_that_are_there_and_is_no_damage(shard_of, ending):
    path = shard_of(f"other.{ending}", [{"content": "x", "doc": {"body": "y", "id": 7}}] * 3)
    assert read(path, text_key="content") == [(number, "x") for number in range(3)]
    assert read(path, text_key="doc.body") == [(number, "y") for number in range(3)], "a key that leads into an object"
    for key in ("text", "doc", "doc.id"):
        for reader in (read, lambda path, text_key: check_documents(path, format_of(path.name), text_key)):
            with pytest.raises(RegrowError, match=rf"other\.{ending}: .*{key}'.*set text_key .*content") as caught:
                reader(path, text_key=key)
            assert not isinstance(caught.value, DamagedShard) and "doc.body" in str(caught.value), str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_shard_of_blank_texts_has_the_right_key(shard_of, ending):
    path = shard_of(f"blank.{ending}", ["", " "])
    assert check_documents(path, format_of(path.name), "text").without_text == {"empty": 1, "white space alone": 1}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_shard_and_a_missing_one_are_refused(shard_of, ending):
    path = shard_of(f"empty.{ending}", [])
    with pytest.raises(RegrowError, match=rf"empty\.{ending}: (empty, not one document|.*without a row)") as caught:
        read(path)
    assert isinstance(caught.value, DamagedShard) == (ending != "parquet"), "the footer tells that nothing is missing"
    path.write_bytes(b"")
    with pytest.raises(DamagedShard, match=rf"empty\.{ending}: (empty|damaged at document 0)"):
        read(path)
    path.unlink()
    with pytest.raises(DamagedShard, match=rf"empty\.{ending}: missing"):
        read(path)


def test_an_error_of_the_system_is_no_damage(tmp_path):
    """Skipping damaged shards must not skip a good one because the machine had a bad moment."""
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RegrowError, match=r"folder\.jsonl: cannot be read \(Is a directory\)") as caught:
        read(tmp_path / "folder.jsonl")
    assert not isinstance(caught.value, DamagedShard), "an error of the system counts as damage"


def test_damage_travels_between_processes(shard_of):
    path = shard_of("bad.jsonl", ["a"])
    path.write_text("{")
    with pytest.raises(DamagedShard) as caught:
        read(path)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (BadRecord, str(caught.value)), "a worker's error arrives as another one"


def test_a_tokenised_shard_is_checked_but_holds_no_text(tmp_path):
    path = tmp_path / "a.tar"
    write_tokenised(path, [[1, 2], [], [3]], about={"vocabulary": 4})
    assert check_documents(path, "tokenised", "text") == Census(3, tokens=3)
    with pytest.raises(RegrowError, match="format tokenised holds no text"):
        list(read_documents(path, "tokenised"))
