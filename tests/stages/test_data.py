"""The data stage through the command: what it pins and reports, what it refuses, and where it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from pipeline.config import load_config
from pipeline.data.formats.jsonl import write_jsonl_zst
from pipeline.data.formats.tokenised import about_tokenised
from pipeline.data.shards import read_manifest
from pipeline.errors import RegrowError
from pipeline.files import read_json
from pipeline.inputs import Inputs, read_encoder
from pipeline.run import Run


def records(texts: list[str], domain: str = "RedPajamaWikipedia") -> list[dict[str, Any]]:
    return [{"text": text, "meta": {"redpajama_set_name": domain}} for text in texts]


def write(path: Path, documents: list[dict[str, Any]]) -> Path:
    """A shard of jsonl.zst, jsonl or parquet, by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(documents), path, row_group_size=20)
    elif path.suffix == ".zst":
        write_jsonl_zst(path, documents)
    else:
        path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def cut(path: Path) -> None:
    """Take the last third of a file away."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.fixture
def config_of(tiny_config: Path) -> Callable[..., Path]:
    """``config_of(sources, **keys)``: the tiny config with these sources and other keys of its data section."""

    def make(sources: list[dict[str, Any] | Path], **keys: Any) -> Path:
        listed = [{"path": str(source)} if isinstance(source, Path) else source for source in sources]
        held_out = {key: {"path": str(value)} if key == "held_out" and value else value for key, value in keys.items()}
        path = tiny_config.with_name("data.yaml")
        path.write_text(
            yaml.safe_dump({"extends": "tiny.yaml", "data": {"sources": listed, "held_out": None, **held_out}})
        )
        return path

    return make


def manifest(folder: Path, name: str = "tiny") -> dict[str, Any]:
    return read_json(folder / "runs" / name / "data" / "manifest.json")


def record(folder: Path, name: str = "tiny") -> dict[str, Any]:
    return read_json(folder / "runs" / name / "data" / "stage.json")["result"]


def rows_of(config: Path, *overrides: str, count: int = 96) -> list[tuple]:
    """The first rows of a run whose stage data is done."""
    loaded = load_config(config, list(overrides))
    run = Run(loaded.run.folder / loaded.run.name)
    rows = islice(Inputs(loaded, run).stream(), count)
    return [(row.index, row.lane, row.cursor, row.input_ids.tolist(), row.cu_seqlens.tolist()) for row in rows]


def test_the_report_says_what_the_corpus_is(here, config_of, texts, tiny_model, tmp_path):
    """Half of the text is of an excluded domain, and the last shard has a handful of documents."""
    for number in range(4):
        first = 200 * number
        write(
            tmp_path / "corpus" / f"{number}.jsonl.zst",
            [
                *records(texts[first : first + 100]),
                *records(texts[first + 100 : first + 150], "RedPajamaC4"),
                *records(texts[first + 150 : first + 200] * 3, "RedPajamaBook"),
            ],
        )
    write(tmp_path / "corpus" / "4.parquet", records(texts[900:930]))
    config = config_of([tmp_path / "corpus"])
    status, printed, message = here("data", config)
    assert status == 0, message
    found = record(tmp_path)
    kept = [text for first in range(0, 800, 200) for text in texts[first : first + 150]] + texts[900:930]
    assert found["documents"] == len(kept) == 630
    encode = read_encoder(load_config(config), tiny_model)
    true = sum(len(encode(text)) for text in kept)
    assert abs(found["tokens"] / true - 1) < 0.05, f"{found['tokens']} tokens estimated, {true} there are"
    assert found["domains"] == {"RedPajamaWikipedia": 430, "RedPajamaC4": 200}
    assert found["left_out"] == {"RedPajamaBook": 600}
    assert found["source_tokens"] == [found["tokens"]] and found["tokens_per_second"] > 1000
    tokens = f"about {found['tokens']:,} tokens"
    for line in (
        f"corpus: 5 shards, 630 documents, {tokens}",
        "left out: 600 documents of RedPajamaBook",
        "domains, by documents: RedPajamaWikipedia 68.3%, RedPajamaC4 31.7%",
        f"{tmp_path}/corpus: {tokens}, which the budget of 4,096 reads {4096 / found['tokens']:.2f} times",
        f"one process tokenizes {found['tokens_per_second']:,.0f} tokens/s",
    ):
        assert f"[data] {line}\n" in printed, f"{line!r} is not in:\n{printed}"
    pinned = manifest(tmp_path)
    corpus, held_out = read_manifest(pinned)
    assert pinned["hash"] == found["manifest"] and pinned["skipped"] == [] and held_out == []
    assert [(shard.path, shard.documents, shard.groups) for shard in corpus] == [
        *((f"{number}.jsonl.zst", 300, None) for number in range(4)),
        ("4.parquet", 30, (20, 10)),
    ]


def test_a_document_that_is_held_out_and_trained_on_is_refused_in_any_format(here, refused, config_of, texts, tmp_path):
    write(tmp_path / "corpus" / "a.jsonl.zst", records(texts[:40]))
    write(tmp_path / "corpus" / "b.jsonl", records(texts[40:80]))
    kept = write(tmp_path / "kept" / "k.parquet", records([*texts[100:125], texts[47], texts[3]]))
    config = config_of([tmp_path / "corpus"], held_out=tmp_path / "kept")
    message = refused("data", config)
    for part in (
        "2 documents of the corpus are held out too",
        f"a.jsonl.zst, document 3 (held out as {kept}, document 26)",
        f"b.jsonl, document 7 (held out as {kept}, document 25)",
    ):
        assert part in message, f"{part!r} is not in:\n{message}"
    assert not (tmp_path / "runs" / "tiny" / "data" / "manifest.json").exists(), "an overlap was pinned"

    write(kept, records(texts[100:125]))
    status, printed, message = here("data", config)
    assert status == 0, f"the repaired files are refused:\n{message}"
    assert "shard 1 of 2: a.jsonl.zst" in printed, "the corpus was not searched for the documents held out now"
    assert "shards were not searched" not in printed
    assert [shard["documents"] for shard in manifest(tmp_path)["held_out"]] == [25]


def test_a_damaged_shard_is_named_or_left_out_and_a_repaired_one_comes_back(here, refused, config_of, texts, tmp_path):
    shards = [write(tmp_path / "corpus" / f"{n}.jsonl.zst", records(texts[30 * n : 30 * n + 30])) for n in range(4)]
    whole = shards[2].read_bytes()
    cut(shards[2])
    config = config_of([tmp_path / "corpus"])
    message = refused("data", config)
    assert f"shard {shards[2]}: damaged" in message, message
    folder = tmp_path / "runs" / "tiny" / "data"
    assert not (folder / "manifest.json").exists() and not (folder / "stage.json").exists()

    status, printed, message = here("data", config, "data.on_damage=skip")
    assert status == 0, f"another policy is refused after the failure:\n{message}"
    assert f"[data] skipped: shard {shards[2]}" in printed and "shard 1 of 4" not in printed, printed
    (skipped,) = manifest(tmp_path)["skipped"]
    assert skipped["shard"] == str(shards[2]) and "damaged" in skipped["reason"]
    assert [shard["path"] for shard in manifest(tmp_path)["shards"]] == [f"{n}.jsonl.zst" for n in (0, 1, 3)]
    assert record(tmp_path)["skipped"] == [skipped] and record(tmp_path)["documents"] == 90

    shards[2].write_bytes(whole)
    message = refused("data", config, "data.on_damage=skip")
    assert f"input {shards[2]} changed" in message and "--redo data" in message, message
    status, _, message = here("data", config, "--redo", "data")
    assert status == 0 and record(tmp_path)["documents"] == 120, message
    assert manifest(tmp_path)["skipped"] == []


def test_what_a_text_lacks_or_holds_is_told_and_pinned(here, refused, config_of, texts, tmp_path):
    """Records without text, by kind and first place; a wrong key; strings of special tokens."""
    odd = [{"text": None}, {"text": " "}, {"body": "x"}]
    first = write(
        tmp_path / "corpus" / "0.jsonl",
        [*records(texts[:40]), *odd, *records([*texts[40:60], "of </s> and <s> and </s>"])],
    )
    write(tmp_path / "corpus" / "1.jsonl.zst", records(texts[60:100]))
    config = config_of([tmp_path / "corpus"])
    message = refused("data", config, "data.on_no_text=raise")
    assert f"shard {first}: 3 records without text (" in message and "the first, at record 40; mend it" in message, (
        message
    )
    status, printed, message = here("data", config)
    assert status == 0, message
    told = (
        "left out: 3 records without text (no such key 1, null 1, white space alone 1) in 1 file; the first is record"
    )
    strings = "special tokens' strings: 3 in 1 of 61 sampled documents (</s> 2, <s> 1); data.special_tokens is plain"
    for line in (f"{told} 40 of {first}", "corpus: 2 shards, 101 documents, about ", strings):
        assert f"[data] {line}" in printed, f"{line!r} is not in:\n{printed}"
    kinds = {"no such key": 1, "null": 1, "white space alone": 1}
    assert [shard.get("without_text") for shard in manifest(tmp_path)["shards"]] == [kinds, None]
    found = record(tmp_path)
    assert (found["without_text"], found["special_strings"]) == (kinds, {"</s>": 2, "<s>": 1})
    plain, parse = rows_of(config, count=900), rows_of(config, "data.special_tokens=parse", count=900)
    assert plain != parse, "the key does not reach the rows"
    message = refused("data", config_of([{"path": str(first), "text_key": "content"}], lanes=4), "run.name=key")
    assert f"shard {first}: no string under the key 'content' in the whole file: 64 records without text" in message
    assert "(text, meta.redpajama_set_name), or leave the file out" in message, message


def test_a_killed_listing_goes_on_behind_the_last_file_that_it_finished(regrow, here, config_of, texts, tmp_path):
    """The first file has a document that is held out: what was found before the kill is not looked for again."""
    files = 24
    for number in range(files):
        write(tmp_path / "corpus" / f"{number}.jsonl.zst", records([f"{number} {text}" for text in texts]))
    kept = write(tmp_path / "kept.jsonl", records([f"0 {texts[7]}"]))
    config = config_of([tmp_path / "corpus"], held_out=kept)
    command = regrow("data", config)
    command.read_until("[data] shard 3 of 24")
    command.kill()
    command.wait()
    folder = tmp_path / "runs" / "tiny" / "data"
    done = len((folder / "progress" / "shards.jsonl").read_text().splitlines()) - 1  # without the held-out file
    assert 2 <= done < files and not (folder / "manifest.json").exists(), f"the kill came late: {done} files were done"
    status, printed, message = here("data", config)
    assert status == 1 and f"corpus/0.jsonl.zst, document 7 (held out as {kept}, document 0)" in message, message
    begun = [int(line.split()[2]) for line in printed.splitlines() if line.startswith("[data] shard ")]
    assert begun == list(range(done + 1, files + 1)), "finished files were decoded again, or others left out"
    write(kept, records(["of no other file " * 40]))
    status, _, message = here("data", config)
    assert status == 0, message
    status, _, message = here("data", config, "run.name=whole")
    assert status == 0, message
    assert manifest(tmp_path) == manifest(tmp_path, "whole"), "another manifest than in one go"


def test_a_corpus_that_was_moved_goes_on_behind_a_link(here, refused, config_of, texts, tmp_path):
    corpus = tmp_path / "corpus"
    for number in range(3):
        write(corpus / f"{number}.jsonl.zst", records(texts[40 * number : 40 * number + 40]))
    config = config_of([corpus])
    assert here("data", config)[0] == 0
    expected = rows_of(config)
    corpus.rename(tmp_path / "moved")
    message = refused("data", config)
    assert f"data.sources.0 '{corpus}': no such file or folder" in message and "put a link at its old place" in message
    corpus.symlink_to(tmp_path / "moved")
    status, printed, message = here("data", config)
    assert status == 0 and "[data] done before, skipped" in printed, f"{printed}\n{message}"
    assert rows_of(config) == expected


def test_ids_made_ahead_give_the_same_rows_and_never_those_of_another_separator(
    here, refused, config_of, texts, tiny_model, tmp_path
):
    """Three formats in two sources; then a corpus that lists the tokenised files themselves."""
    write(tmp_path / "a" / "0.jsonl.zst", [*records(texts[:60]), *records(texts[60:70], "RedPajamaBook")])
    write(tmp_path / "a" / "1.parquet", records(texts[70:130]))
    write(tmp_path / "b" / "0.jsonl", records(texts[200:260]))
    sources = [tmp_path / "a", {"path": str(tmp_path / "b"), "weight": 3.0}]
    config = config_of(sources)
    message = refused("data", config, f"data.tokenised={tmp_path}/b/ids")
    assert f"data.tokenised '{tmp_path}/b/ids' lies in data.sources.1 '{tmp_path}/b'" in message, message
    ahead = f"data.tokenised={tmp_path}/ids"
    for overrides in (["run.name=text"], ["run.name=ids", ahead, "data.tokenise_processes=1"]):
        status, _, message = here("data", config, *overrides)
        assert status == 0, message
    assert {shard["format"] for shard in manifest(tmp_path, "ids")["shards"]} == {"tokenised"}
    expected = rows_of(config, "run.name=text")
    assert rows_of(config, "run.name=ids", ahead) == expected, "ids made ahead are in other rows than the text's"
    found, text = record(tmp_path, "ids"), record(tmp_path, "text")
    encode = read_encoder(load_config(config), tiny_model)
    true = sum(len(encode(one)) for one in (*texts[:60], *texts[70:130], *texts[200:260]))
    assert (found["tokens"], found["tokens_estimated"], text["tokens_estimated"]) == (true, False, True)
    assert found["documents"] == text["documents"] == 180

    other = ["run.name=ids", ahead, "data.tokenise_processes=1", "data.separator=<s>"]
    message = refused("data", config, *other)
    assert "input tokenizer and separator changed" in message and "--redo data" in message, message
    status, printed, message = here("data", config, *other, "--redo", "data")
    assert status == 0, message
    assert "tokenised before" not in printed, "ids with another separator were taken as done"
    made = {about_tokenised(path)["separator"]: path.parent for path in (tmp_path / "ids").rglob("*.tar")}
    assert set(made) == {0, 1}, "ids with another separator took the place of the first ones"
    assert rows_of(config, *other) == rows_of(config, "run.name=text", "data.separator=<s>") != expected

    config = config_of([made[0]])
    message = refused("data", config)
    assert "tokenised with another separator (it has 0, the model and the config give 1)" in message, message
    assert "source-0/0.jsonl.zst." in message, message
    status, _, message = here("data", config, "data.separator=<s>")
    assert status == 0, message
    assert not record(tmp_path)["tokens_estimated"]
    # What is listed holds no text, so that the separator is part of the corpus.
    message = refused("data", config, "data.separator=eos")
    assert "input tokenizer and separator changed" in message, message


def test_sources_are_mixed_by_their_weights(here, config_of, texts, tmp_path):
    """One source of capitals, one of small letters: what a row holds tells where it is from."""
    write(tmp_path / "upper" / "0.jsonl", records([text.upper() for text in texts[:300]]))
    write(tmp_path / "lower" / "0.jsonl", records([text.lower() for text in texts[300:600]]))
    config = config_of([{"path": str(tmp_path / "upper"), "weight": 3}, tmp_path / "lower"])
    status, printed, message = here("data", config)
    assert status == 0, message
    assert [(shard["source"], shard["place"]) for shard in manifest(tmp_path)["shards"]] == [
        (0, f"{tmp_path}/upper"),
        (1, f"{tmp_path}/lower"),
    ]
    found = record(tmp_path)
    for source, share, tokens in zip(("upper", "lower"), (0.75, 0.25), found["source_tokens"], strict=True):
        line = f"{source}: about {tokens:,} tokens, which the budget of 4,096 reads {4096 * share / tokens:.2f} times"
        assert line in printed, f"{line!r} is not in:\n{printed}"
    tokenizer = Inputs(load_config(config), Run(tmp_path / "runs" / "tiny")).encoder.tokenizer
    decoded = [tokenizer.decode(ids).replace("</s>", "") for _, _, _, ids, _ in rows_of(config, count=400)]
    upper = [text == text.upper() for text in decoded]
    assert all(above or text == text.lower() for above, text in zip(upper, decoded, strict=True)), "rows are mixed"
    assert 0.69 < sum(upper) / 400 < 0.81, f"{sum(upper)} of 400 rows are of the source whose weight is 3 of 4"


def test_a_corpus_of_excluded_documents_alone_is_refused(refused, config_of, texts, tmp_path):
    """Before scoring would say that it finds too few."""
    write(tmp_path / "corpus" / "0.jsonl", records(texts[:60], "RedPajamaBook"))
    message = refused("data", config_of([tmp_path / "corpus"]))
    assert "not one document is left to train on (60 of RedPajamaBook left out); look at exclude_domains" in message


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a web server over tmp_path/web."""
    (tmp_path / "web").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    handler.func.log_message = lambda *arguments: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_remote_text_is_searched_when_it_is_fetched(config_of, here, served, texts, tmp_path, monkeypatch):
    """Corpus and held-out set both behind a URL: nothing of them is here when stage data ends."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write(tmp_path / "web" / "kept.jsonl", records(texts[200:210]))
    for number in range(12):
        write(tmp_path / "web" / f"{number:02d}.jsonl", records([*texts[9 * number : 9 * number + 9]]))
    path = config_of(
        [{"path": f"{served}/{{00..11}}.jsonl"}], held_out=f"{served}/kept.jsonl", cache=str(tmp_path / "cache")
    )

    def rows_of(name: str) -> Iterator[Any]:
        status, output, error = here("data", path, f"run.name={name}")
        assert status == 0, error
        assert "12 shards are searched for held-out documents when they are fetched" in output
        config, run = load_config(path, [f"run.name={name}"]), Run(tmp_path / "runs" / name)
        assert (run.stage("data") / "held_out.hashes").stat().st_size == 10 * 16
        return iter(Inputs(config, run).stream())

    write(tmp_path / "web" / "short.jsonl", records(["Water is wet."]))
    short = f"data.held_out.path={served}/short.jsonl"
    status, _, error = here("data", path, "run.name=short", short)
    assert status == 1 and "data.held_out: " in error and "not one row of data.row_length (64)" in error, error
    assert len(list(islice(rows_of("clean"), 60))) == 60
    write(tmp_path / "web" / "07.jsonl", records([*texts[63:68], texts[203]]))
    with pytest.raises(RegrowError, match=r"07\.jsonl, document 5 \(held out as one of data\.held_out\)"):
        list(islice(rows_of("twin"), 600))
