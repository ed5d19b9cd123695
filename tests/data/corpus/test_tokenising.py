"""Tokenising ahead: the same documents and rows as from the text, whatever is killed, damaged or missing on the way."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from webdataset import TarWriter

from pipeline.data.corpus.overlap import hash_text
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.jsonl import write_jsonl_zst
from pipeline.data.formats.tokenised import about_tokenised, read_tokenised, write_tokenised
from pipeline.data.tokens import encoder_hash, load_tokenizer, make_encoder, tokenizer_hash
from pipeline.errors import RegrowError
from pipeline.files import hash_file
from tests.data.ahead import times, tokenise_into
from tests.data.corpora import listing_of, row_stream


@pytest.fixture(scope="module")
def mixed(texts, tmp_path_factory):
    """Two sources: jsonl.zst, tar, jsonl and parquet in row groups with an excluded domain; and more jsonl.zst."""
    folder = tmp_path_factory.mktemp("mixed")
    articles = [{"text": text, "meta": {"redpajama_set_name": "RedPajamaWikipedia"}} for text in ["", *texts[:150]]]
    book = {"text": texts[0], "meta": {"redpajama_set_name": "RedPajamaBook"}}
    (folder / "corpus" / "deep").mkdir(parents=True)
    write_jsonl_zst(folder / "corpus" / "b.jsonl.zst", [book, *articles[:12], book, articles[70], book])
    with (folder / "corpus" / "a.tar").open("wb") as file, TarWriter(file, mtime=0) as tar:
        for number, record in enumerate([book, *articles[20:33], book]):
            tar.write({"__key__": str(number), "json": record})
    lines = [json.dumps(record) + "\n" for record in [book, *articles[40:54], book]]
    (folder / "corpus" / "deep" / "c.jsonl").write_text("".join(lines))
    table = pyarrow.Table.from_pylist([*articles[80:87], book, *articles[87:110]])
    pyarrow.parquet.write_table(table, folder / "corpus" / "d.parquet", row_group_size=8)
    write_jsonl_zst(folder / "other" / "b.jsonl.zst", articles[120:150])
    first = listing_of(str(folder / "corpus"), exclude_domains=("RedPajamaBook",)).shards
    assert [shard.path for shard in first] == ["a.tar", "b.jsonl.zst", "d.parquet", "deep/c.jsonl"]
    return [*first, *listing_of(str(folder / "other"), number=1).shards]


@pytest.fixture(scope="module")
def done(mixed, tiny_model, tmp_path_factory):
    """All of ``mixed`` made by two processes: the folder, the shards, the lines that were said."""
    folder = tmp_path_factory.mktemp("done") / "made"
    made, skipped, said = tokenise_into(folder, mixed, tiny_model, processes=2)
    assert skipped == []
    return folder, made, said


@pytest.fixture
def encode(tiny_model):
    return make_encoder(load_tokenizer(tiny_model))


def ids_of(shard, encode):
    path = Path(shard.place) / shard.path
    if shard.format == "tokenised":
        return {index: ids.tolist() for index, ids in read_tokenised(path)}
    texts = read_documents(path, shard.format, shard.text_key, shard.exclude_domains)
    return {index: ids for index, text in texts if (ids := encode(text))}


def test_documents_and_their_numbers_are_those_of_the_text(mixed, done, encode):
    folder, made, said = done
    for text, shard in zip(mixed, made, strict=True):
        path = Path(shard.place) / shard.path
        assert path.is_relative_to(folder) and shard.path.startswith(text.path) and shard.path.endswith(".tokens.tar")
        assert ids_of(shard, encode) == ids_of(text, encode), f"{shard.name} has other documents than {text.name}"
        assert len(ids_of(shard, encode)) < shard.documents or text.source == 1, "no document was excluded"
        about = about_tokenised(path)
        expected = (tokenizer_hash(encode.tokenizer), encoder_hash(encode), None, encode.separator)
        assert tuple(about[key] for key in ("tokenizer", "encoder", "bos", "separator")) == expected
        assert (shard.documents, shard.groups) == (about["documents"], text.groups)
        assert shard.documents == text.documents, "an excluded document at the end of the file lost its place"
        assert (shard.bytes, shard.sha256) == (path.stat().st_size, hash_file(path))
        assert (shard.source, shard.kind, shard.format) == (text.source, "local", "tokenised")
    for number, place in {(shard.source, shard.place) for shard in made}:
        listed = listing_of(place, number=number).shards
        mine = {shard.path: (shard.bytes, shard.sha256, shard.documents) for shard in made if shard.source == number}
        assert {shard.path: (shard.bytes, shard.sha256, shard.documents) for shard in listed} == mine
    tokens = sum(len(ids) for shard in made for ids in ids_of(shard, encode).values())
    assert said[-1].startswith(f"5 of 5 done: {tokens:,} tokens, "), said
    assert not list(folder.rglob("*.new")), "an unfinished file was left"


@pytest.mark.parametrize("lanes", [3, 16])
def test_the_lanes_give_the_same_rows(mixed, done, encode, tmp_path, lanes):
    settings = {"encode": encode, "lanes": lanes, "row_length": 48, "seed": 3, "weights": (2.0, 1.0)}
    rows = zip(*(row_stream(shards, tmp_path, **settings) for shards in (mixed, done[1])), strict=True)
    count = 0
    for text, ahead in islice(rows, 1200):
        assert np.array_equal(text.input_ids, ahead.input_ids), f"row {text.index} has other ids"
        assert np.array_equal(text.cu_seqlens, ahead.cu_seqlens), f"row {text.index} has other documents"
        assert (text.lane, text.cursor) == (ahead.lane, ahead.cursor), f"row {text.index} ends elsewhere"
        count += 1
    assert count == 1200 and all(cursor.epoch > 0 for cursor in text.cursor.cursors), "less than an epoch was compared"


@pytest.fixture
def copied(done, tmp_path):
    """The folder that was made, and its shards, in tmp_path; times of change are kept."""
    shutil.copytree(done[0], tmp_path / "made")
    return tmp_path / "made", [
        replace(shard, place=str(tmp_path / "made" / Path(shard.place).relative_to(done[0]))) for shard in done[1]
    ]


def test_what_is_finished_is_not_done_again(mixed, copied, tokenise, tmp_path):
    folder, made = copied
    before = times(folder)
    again, _, said = tokenise(mixed)
    assert (again, said) == (made, ["5 of 5 shards were tokenised before"]) and times(folder) == before
    (folder / "tokenised.jsonl").unlink()
    assert tokenise(mixed)[0] == made and times(folder) == before, "without its index a file says itself what it is"

    # What changed is done anew, and that alone: a tokenised file that lost its end, one with a flip, and a source.
    tar, zst, parquet = (Path(shard.place) / shard.path for shard in made[:3])
    tar.write_bytes(tar.read_bytes()[:-5000])
    flipped = bytearray(zst.read_bytes())
    flipped[len(flipped) // 2] ^= 4
    zst.write_bytes(flipped)
    source = tmp_path / "corpus" / "d.parquet"
    source.parent.mkdir()
    table = pyarrow.parquet.read_table(Path(mixed[2].place) / mixed[2].path)
    pyarrow.parquet.write_table(table.slice(0, 20), source)
    changed = listing_of(str(source), exclude_domains=("RedPajamaBook",)).shards
    again, _, said = tokenise([*mixed[:2], *changed, *mixed[3:]])
    assert said[0] == "2 of 5 shards were tokenised before", said
    after = times(folder)
    written = {Path(again[2].path).name, tar.name, zst.name}
    assert {name for name in after if after[name] != before.get(name)} == written and parquet.exists()
    assert (again[2].documents, again[2].groups) == (20, (20,))
    assert [*again[:2], *again[3:]] == [*made[:2], *made[3:]], "the same text gave other bytes"

    other, _, said = tokenise(mixed[4:], separator="<s>")
    assert said[0].startswith("1 of 1 done") and other[0].documents == made[4].documents
    assert other[0].sha256 != made[4].sha256, "the separator changed and the ids did not"


def test_tokenised_shards_pass_through_if_their_ids_are_the_same(mixed, copied, tokenise, tmp_path):
    _, made = copied
    both = [mixed[2], *made[:2], mixed[3]]
    assert tokenise(both)[0] == [made[2], *made[:2], made[3]]
    with pytest.raises(RegrowError, match=rf"{re.escape(made[0].name)}: tokenised with another separator \(it has 1, "):
        tokenise(both, separator="<s>")
    foreign = tmp_path / "foreign" / "x.tar"
    write_tokenised(foreign, [[1, 2, 3]], about={"vocabulary": 1000, "tokenizer": "another"})
    with pytest.raises(RegrowError, match="tokenised with another tokenizer"):
        tokenise([*mixed, *listing_of(str(foreign.parent)).shards])


def test_damage_ends_it_or_is_recorded(mixed, tokenise, encode, tmp_path):
    cut = tmp_path / "corpus" / "cut.jsonl.zst"
    cut.parent.mkdir()
    cut.write_bytes((Path(mixed[1].place) / mixed[1].path).read_bytes()[:-30])
    here = replace(mixed[1], place=str(cut.parent), path=cut.name)
    # Of the third no hash is known: the decoder meets the damage.
    shards = [
        here,
        mixed[0],
        replace(here, source=1, sha256=None, documents=None, bytes=cut.stat().st_size),
        replace(mixed[3], documents=mixed[3].documents + 1),
    ]
    made, skipped, _ = tokenise(shards, on_damage="skip")
    assert len(made) == 1 and made[0].path.startswith("a.tar.")
    assert ids_of(made[0], encode) == ids_of(mixed[0], encode)
    assert [entry["shard"] for entry in skipped] == [shard.name for shard in (shards[0], *shards[2:])]
    reasons = [
        r"bytes, the manifest says",
        r"damaged at document \d+",
        rf"{mixed[3].documents} documents, the manifest",
    ]
    for entry, reason in zip(skipped, reasons, strict=True):
        assert re.search(reason, entry["reason"]) and entry["shard"] in entry["reason"], entry
    with pytest.raises(DamagedShard, match=rf"{re.escape(str(cut))}: damaged at document"):
        tokenise(shards[1:3])
    assert set(times(tmp_path / "made")) == {Path(made[0].path).name}, "a damaged shard left a tokenised one"


def test_what_cannot_be_done_is_refused_before_it_begins(mixed, tokenise, tmp_path):
    with pytest.raises(RegrowError, match=r"no space for 5 tokenised shards: 6000000\.00 GB needed"):
        tokenise([replace(mixed[0], path="x.jsonl", bytes=10**16), *mixed[1:]])
    with pytest.raises(RegrowError, match="its name leads out of"):
        tokenise([replace(mixed[0], path="../../x.jsonl")])
    signed = replace(mixed[0], kind="url", place="http://host", path="a.jsonl?key=1", sha256=None)
    with pytest.raises(RegrowError, match="two shards of one source have the same name"):
        tokenise([signed, replace(signed, path="a.jsonl?key=2")])
    (tmp_path / "made").mkdir(exist_ok=True)
    with (tmp_path / "made" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RegrowError, match="another command is tokenising into it"):
            tokenise(mixed)


def test_remote_shards_are_fetched_and_given_back(mixed, tokenise, encode, server, tmp_path):
    for shard in mixed[:3]:
        server.files[f"/{shard.path}"] = (Path(shard.place) / shard.path).read_bytes()
    remote = [
        listing_of(f"{server.address}/{shard.path}", exclude_domains=shard.exclude_domains).shards[0]
        for shard in mixed[:3]
    ]
    assert remote[2].groups == mixed[2].groups and remote[0].documents is None
    server.fail(f"/{remote[0].path}", "429:0")
    index, text = next(islice(read_documents(Path(mixed[2].name), "parquet", "text", mixed[2].exclude_domains), 7, 8))
    with pytest.raises(RegrowError, match=rf"{remote[2].path}, document {index} \(held out as a kept one\)"):
        tokenise(remote[2:], held_out={hash_text(text): "a kept one"})
    assert not list((tmp_path / "made").rglob("*.tokens.tar")), "ids of a document that is held out were kept"
    made, _, said = tokenise(remote)
    for shard, text in zip(made, mixed, strict=False):
        assert ids_of(shard, encode) == ids_of(text, encode), f"{text.name} gives other documents from a server"
        assert (shard.documents, shard.groups) == (text.documents, text.groups)
    assert any("429" in line for line in said), f"the wait was not said: {said}"
    left = [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".sha256")]
    assert not left, f"copies were left in the cache: {left}"


def test_records_without_text_keep_their_numbers_and_have_no_token(shard_of, texts, tokenise, encode, server, tmp_path):
    """Here and behind a server, whose files are first read when they are tokenised."""
    documents = [texts[0], {"text": None}, "", texts[1], {"body": "x"}, " \n", texts[2]]
    path = shard_of("a.jsonl", documents)
    server.files["/a.jsonl"] = path.read_bytes()
    expected = {0: encode(texts[0]), 3: encode(texts[1]), 6: encode(texts[2])}
    for place in (str(path), f"{server.address}/a.jsonl"):
        shards = listing_of(place).shards
        (made,), _, _ = tokenise(shards)
        assert ids_of(made, encode) == expected and made.documents == 7, (
            f"{place}: other documents than those with text"
        )
        assert made.without_text == shards[0].without_text
    far = listing_of(f"{server.address}/a.jsonl", on_no_text="raise").shards
    shutil.rmtree(tmp_path / "made")
    with pytest.raises(RegrowError, match=r"a\.jsonl: a record without text \(null\), at record 1; .*on_no_text: skip"):
        tokenise(far)


def test_ids_of_another_setting_of_special_tokens_are_others(shard_of, tokenise, encode):
    """Made apart in the same folder, and refused where a corpus lists them, as are those that do not say."""
    shards = listing_of(str(shard_of("a.jsonl", ["one </s> two"]))).shards
    (plain,), _, _ = tokenise(shards)
    (parse,), _, said = tokenise(shards, special_tokens="parse")
    assert said[-1].startswith("1 of 1 done") and plain.place != parse.place, "the ids of the first were taken"
    counts = [ids_of(shard, encode)[0].count(encode.separator) for shard in (plain, parse)]
    assert counts == [1, 2], f"{counts} separators in a text with one's string"
    with pytest.raises(RegrowError, match=r"another special_tokens \(it has plain, .* give parse\); tokenise its text"):
        tokenise([plain], special_tokens="parse")
    about = {name: value for name, value in about_tokenised(path_of(plain)).items() if name != "special_tokens"}
    write_tokenised(path_of(plain), [[5, 1]], about=about)
    with pytest.raises(
        RegrowError, match=r"special_tokens \(it has none, as an earlier release made it, .* give plain\)"
    ):
        tokenise([plain])


def path_of(shard):
    return Path(shard.place) / shard.path


def test_a_tokenizer_in_python_code_works_too(mixed, tokenise, tmp_path):
    folder = tmp_path / "byt5"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    encode = make_encoder(load_tokenizer(folder))
    assert encode.engine is None, "transformers has a compiled one now; take another"
    made, _, _ = tokenise(mixed[:1], tokenizer=folder)
    assert ids_of(made[0], encode) == ids_of(mixed[0], encode)
