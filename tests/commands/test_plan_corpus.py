"""The look at the corpus: what is counted of a shard, and how near the estimates come to the whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.commands import plan_corpus
from pipeline.commands.plan import plan
from pipeline.commands.plan_corpus import corpus_tokens, look_at_corpus
from pipeline.commands.plan_lines import corpus_lines
from pipeline.config import Config, load_config
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.tokens import Encoder
from pipeline.inputs import read_encoder


@pytest.fixture
def encoder(tiny_config: Path, tiny_model: Path) -> Encoder:
    return read_encoder(load_config(tiny_config), tiny_model)


def of(tiny_config: Path, folder: Path, *overrides: str, more: str = "") -> Config:
    return load_config(tiny_config, [f"data.sources=[{{path: {folder}{more}}}]", *overrides])


def lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_shard_is_counted_with_what_is_left_out(tiny_config, tmp_path, encoder):
    kept = [{"text": f"The river number {n} is long."} for n in range(6)]
    out = [{"text": "A book.", "meta": {"redpajama_set_name": "Books"}}, {"text": None}, {"text": " \n"}, {"none": 1}]
    lines(tmp_path / "a.jsonl", kept + out)
    lines(tmp_path / "b.jsonl", kept + out)
    (look,) = look_at_corpus(of(tiny_config, tmp_path, more=", files: '?.jsonl', exclude_domains: [Books]"), encoder)
    assert (look["shard"], look["shards"], look["documents"], look["whole"]) == ("a.jsonl", 2, 10, True)
    assert look["excluded"] == 0.1
    assert look["without_text"] == {"no such key": 0.1, "null": 0.1, "white space alone": 0.1}
    ids = [len(one) for one in encoder.batch([record["text"] for record in kept])]
    assert look["sampled"] == 6 and look["tokens_a_document"] == sum(ids) / 6
    assert look["bytes_a_token"] == sum(len(record["text"]) for record in kept) / sum(ids)
    assert look["corpus_tokens"] == 2 * sum(ids)
    assert look["epochs"] == pytest.approx(4096 / (2 * sum(ids)))
    assert look["example"] == "The river number 0 is long."
    text = "\n".join(corpus_lines([look], 4096))
    for part in ("a.jsonl (2 shards)", "all 10 documents: 10.00% no such key", "10.00% of excluded domains", "epochs"):
        assert part in text, text


def test_estimates_come_near_the_whole(tiny_config, demo, encoder):
    (look,) = look_at_corpus(load_config(tiny_config, ["data.sources.0.files='**[012].jsonl.zst'"]), encoder)
    shards = sorted((demo / "text" / "train" / "chunk1").glob("*[012].jsonl.zst"))
    texts = [text for shard in shards for _, text in read_documents(shard, "jsonl")]
    assert look["shards"] == 3 and look["whole"]
    assert look["corpus_tokens"] == pytest.approx(sum(map(len, encoder.batch(texts))), rel=0.05)
    assert len(look["example"]) <= 200


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz"])
def test_of_a_large_shard_the_beginning_is_read(tiny_config, tmp_path, encoder, monkeypatch, kind):
    texts = ["The old house stands near the river."] * 400
    path = tmp_path / f"large.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.table({"text": texts}), path, row_group_size=50)
    elif kind == "jsonl":
        lines(path, [{"text": text} for text in texts])
    else:
        path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    monkeypatch.setattr(plan_corpus, "READ", 100 * len(texts[0]))
    (look,) = look_at_corpus(of(tiny_config, path), encoder)
    assert (look["documents"], look["whole"]) == (100, False)
    whole = sum(map(len, encoder.batch(texts)))
    # How much of a compressed file was read only decoding it to its end would tell.
    assert look["corpus_tokens"] == (None if kind == "jsonl.gz" else pytest.approx(whole, rel=0.02))
    assert "the first 100 documents" in "\n".join(corpus_lines([look], 4096))


def test_token_ids_know_their_number(tiny_config, tmp_path, encoder):
    ids = encoder.batch(["The city is old.", "The river is long."])
    write_tokenised(tmp_path / "ids.tar", ids, about={"vocabulary": 1000})
    config = of(tiny_config, tmp_path / "ids.tar")
    (look,) = look_at_corpus(config, encoder)
    assert (look["documents"], look["corpus_tokens"], look["example"]) == (2, sum(map(len, ids)), None)
    assert corpus_tokens([look], config) == sum(map(len, ids))


def test_without_a_tokenizer_documents_are_counted(tiny_config):
    config = load_config(tiny_config)
    (look,) = look_at_corpus(config, None)
    assert look["documents"] > 1000 and look["tokens_a_document"] is look["corpus_tokens"] is look["epochs"] is None
    assert corpus_tokens([look], config) is None
    assert "tokens not known" in "\n".join(corpus_lines([look], 4096))


def test_what_is_not_here_is_passed_over_and_weights_divide_the_budget(tiny_config, tmp_path, demo, encoder):
    path = lines(tmp_path / "a.jsonl", [{"text": "The river is long."}] * 10)
    asked = f"data.sources=[{{path: owner/name}}, {{path: {path}, weight: 3.0}}, {{path: {path}, weight: 1.0}}]"
    config = load_config(tiny_config, [asked])
    heavy, light = look_at_corpus(config, encoder)
    # Weights 1, 3 and 1.
    assert heavy["epochs"] == pytest.approx(3 * light["epochs"])
    assert heavy["epochs"] == pytest.approx(4096 * 3 / 5 / heavy["corpus_tokens"])
    assert corpus_tokens([heavy, light], config) is None


def test_instructions_have_a_row_for_each_record(tiny_config, tmp_path, encoder):
    path = lines(tmp_path / "a.jsonl", [{"instruction": "Say it.", "output": f"It {n}."} for n in range(8)])
    (look,) = look_at_corpus(of(tiny_config, path, more=", format: instruction"), encoder)
    assert look["epochs"] == pytest.approx(4096 / 64 / 8)


def test_damage_is_met_as_a_run_meets_it(tiny_config, tmp_path, encoder):
    (tmp_path / "a.jsonl").write_text('{"text": "The river is long."}\n' * 3 + '{"text": \n')
    lines(tmp_path / "b.jsonl", [{"text": "The city is old."}])
    with pytest.raises(DamagedShard, match=r"a\.jsonl"):
        look_at_corpus(of(tiny_config, tmp_path, more=", files: '?.jsonl'"), encoder)
    skipping = of(tiny_config, tmp_path, "data.on_damage=skip", more=", files: '?.jsonl'")
    assert [look["shard"] for look in look_at_corpus(skipping, encoder)] == ["b.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    assert plan(of(tiny_config, tmp_path, more=", files: '?.jsonl'"))["corpus"][0]["example"] == "The city is old."
