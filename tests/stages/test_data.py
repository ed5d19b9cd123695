"""The data stage through the command: what it pins and reports, what it refuses, and where it goes on."""

from __future__ import annotations

from pipeline.config import load_config
from pipeline.data.shards import read_manifest
from pipeline.inputs import read_encoder
from tests.stages.corpora import cut, manifest, record, records, rows_of, write


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


def test_a_corpus_of_excluded_documents_alone_is_refused(refused, config_of, texts, tmp_path):
    """Before scoring would say that it finds too few."""
    write(tmp_path / "corpus" / "0.jsonl", records(texts[:60], "RedPajamaBook"))
    message = refused("data", config_of([tmp_path / "corpus"]))
    assert "not one document is left to train on (60 of RedPajamaBook left out); look at exclude_domains" in message
