"""Where the data stage's text comes from: moved, made ahead, mixed, remote. The rows are those of the text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.data.formats.tokenised import about_tokenised
from pipeline.errors import RegrowError
from pipeline.inputs import Inputs, read_encoder
from pipeline.run import Run
from tests.stages.corpora import manifest, record, records, rows_of, write


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


def test_instruction_data_is_listed_counted_in_epochs_and_shown_without_its_padding(here, config_of, tmp_path):
    given = [
        {"instruction": f"Say {number}.", "input": "aloud" if number % 2 else "", "output": f"It is {number}."}
        for number in range(32)
    ]
    given.append({"instruction": "Say nothing.", "output": ""})
    (tmp_path / "examples").mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in given)
    (tmp_path / "examples" / "a.jsonl").write_text(lines)
    config = config_of([{"path": str(tmp_path / "examples"), "format": "instruction"}], lanes=4, row_length=128)
    status, printed, message = here("data", config, "train.tokens=8448")
    assert status == 0, message
    assert "left out: 1 record without text (empty 1)" in printed, printed
    assert re.search(r"which the budget of 8,448 reads 2\.00 times", printed), printed
    known = load_config(config, ["train.tokens=8448", "train.healing.sequences=8", "train.healing.length=64"])
    text = Inputs(known, Run(known.run_folder))
    assert "</s></s>" not in text.encoder.tokenizer.decode(text.for_healing().flatten()), "healed on padding"
    status, printed, message = here("data-show", config, "train.tokens=8448", "--step", "1")
    assert status == 0 and "row 0, lane 0, 1 documents" in printed, message or printed
    assert "targets: It is " in printed and "</s></s>" not in printed, printed


def test_instruction_data_without_the_fields_is_refused_with_those_that_are_there(refused, config_of, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "Say it.", "response": "It."}\n' * 20)
    message = refused("data", config_of([{"path": str(tmp_path / "a.jsonl"), "format": "instruction"}], lanes=4))
    for part in ("no string under the key 'instruction' or 'output'", "the keys of instruction", "prompt, response"):
        assert part in message, message
