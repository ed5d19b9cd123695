"""What is looked at before a run: a tokenizer that fits its model, and text that can be read as the config says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoConfig, AutoTokenizer

from pipeline import checks
from pipeline.checks import (
    FIRST,
    check_held_out,
    check_lengths,
    check_prompts,
    check_texts,
    check_tokenizer,
    check_weights,
)
from pipeline.config import Config, load_config
from pipeline.data.damage import DamagedShard
from pipeline.errors import RegrowError
from pipeline.inputs import read_encoder
from pipeline.model.costs import meta_model
from tests.families import build
from tests.own_code import write_own_tokenizer


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def look(tiny_config: Path, model: Path) -> Callable[..., None]:
    """``look(override, ...)``: at the copy's tokenizer."""

    def call(*overrides: str) -> None:
        meta = meta_model(AutoConfig.from_pretrained(model))
        check_tokenizer(load_config(tiny_config, overrides), model, meta)

    return call


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_a_tokenizer_that_fits_passes(look):
    look()
    look("data.separator=<s>")


def test_ids_without_a_row_are_named_with_both_numbers(look, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(10)])
    tokenizer.save_pretrained(model)
    with pytest.raises(RegrowError) as error:
        look()
    for part in ("1000 rows", "1010 ids", "10 have no row", "1000 '<extra0>' to 1009 '<extra9>'", "(1010)"):
        assert part in str(error.value), str(error.value)
    # A gap in the numbers is none: it is the largest id that counts.
    edit(model / "config.json", lambda tree: tree.update(vocab_size=1010))
    look()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "no tokenizer in it"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer could be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"tokenizer\.json: damaged"),
        (
            lambda folder: edit(folder / "tokenizer.json", lambda tree: tree.pop("model")),
            r"\.json: no tokenizer can be",
        ),
        (
            lambda folder: edit(folder / "tokenizer.json", lambda tree: tree["model"].update(vocab={}, merges=[])),
            "no tokens for",
        ),
        (lambda folder: edit(folder / "tokenizer_config.json", lambda tree: tree.pop("eos_token")), "no EOS token"),
    ],
    ids=["none", "a part", "cut", "no model", "no words", "no EOS"],
)
def test_a_tokenizer_that_is_not_whole_is_refused(look, model, damage, said):
    damage(model)
    with pytest.raises(RegrowError, match=said):
        look()


def test_the_tokenizer_is_asked_what_data_special_tokens_says(look, model, tmp_path, own_modules):
    """One that cannot take special tokens' strings as text is right where they are to be parsed."""
    write_own_tokenizer(model)
    allowed = "model.trust_remote_code=true"
    with pytest.raises(RegrowError, match=r"data\.special_tokens is plain, but .* set data\.special_tokens: parse"):
        look(allowed)
    look(allowed, "data.special_tokens=parse")


def test_a_separator_that_is_no_token_is_refused(look):
    with pytest.raises(RegrowError, match=r"data\.separator '<end>' is not a token"):
        look("data.separator=<end>")


def test_prompts_that_cannot_be_continued_are_refused(tiny_config, model):
    meta = meta_model(AutoConfig.from_pretrained(model))
    positions = meta.config.max_position_embeddings

    encoder = read_encoder(load_config(tiny_config), model)

    def ask(prompt: str, new_tokens: int) -> None:
        overrides = [f"evaluate.generation.prompts=[{json.dumps(prompt)}]"]
        config = load_config(tiny_config, [*overrides, f"evaluate.generation.new_tokens={new_tokens}"])
        check_prompts(config, encoder, meta)

    ask("Water is", 8)
    with pytest.raises(RegrowError, match=rf"'Water is' has \d+ tokens and {positions} are to follow"):
        ask("Water is", positions)
    with pytest.raises(RegrowError, match=r"prompt '' has no tokens.*evaluate\.generation\.prompts"):
        ask("", 8)


def test_weights_that_are_many_are_said_and_not_read(model, monkeypatch):
    meta = meta_model(AutoConfig.from_pretrained(model))
    assert check_weights(model, meta) == []
    monkeypatch.setattr(checks, "FEW", 1000)
    (line,) = check_weights(model, meta)
    assert "954.10 kB" in line and "seen when they are loaded" in line


def with_source(config: Path, folder: Path, *more: str) -> Config:
    return load_config(config, [f"data.sources.0.path={folder}", "data.held_out=null", *more])


def write(path: Path, *records: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_source_is_read_once_and_remote_ones_are_said(tiny_config, tmp_path):
    write(tmp_path / "text" / "a.jsonl", {"text": "One."})
    # Only the first records: what stands behind them is for stage data.
    (tmp_path / "text" / "a.jsonl").open("a").write('{"text": null}\n' * FIRST + "no json\n")
    assert check_texts(with_source(tiny_config, tmp_path / "text")) == []
    for place in ("owner/name", "https://example.invalid/{000..002}.jsonl?key=secret"):
        (line,) = check_texts(with_source(tiny_config, place))
        assert "not on this machine; stage data reads it first" in line and "secret" not in line


def test_text_that_cannot_be_read_is_refused(tiny_config, tmp_path):
    write(tmp_path / "text" / "a.jsonl", {"content": "One."})
    # Also where the wrong key's file is long: it is not read to its end.
    with (tmp_path / "text" / "a.jsonl").open("a") as file:
        file.write('{"content": "More."}\n' * FIRST + "no json\n")
    with pytest.raises(RegrowError, match=r"none of its first 1,000 records has the key .text.; .*\(content\)"):
        check_texts(with_source(tiny_config, tmp_path / "text"))
    with pytest.raises(RegrowError, match=r"a\.jsonl"):
        check_texts(load_config(tiny_config, [f"data.held_out.path={tmp_path}/text"]))
    assert check_texts(with_source(tiny_config, tmp_path / "text", "data.sources.0.text_key=content")) == []
    with pytest.raises(RegrowError, match="no such file or folder"):
        check_texts(with_source(tiny_config, tmp_path / "nowhere"))
    assert len(check_texts(with_source(tiny_config, tmp_path / "nowhere"), elsewhere=True)) == 1


def test_text_that_may_come_later_is_left_to_stage_data(tiny_config, tmp_path):
    write(tmp_path / "text" / "a.jsonl", *[{"text": None}] * (FIRST + 1), {"text": "One."})
    (line,) = check_texts(with_source(tiny_config, tmp_path / "text"))
    assert "stage data reads them whole" in line


def test_where_damage_is_skipped_one_file_that_can_be_read_is_enough(tiny_config, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jsonl.gz").write_bytes(b"no gzip")
    skip = "data.on_damage=skip"
    with pytest.raises(RegrowError, match=r"a\.jsonl\.gz"):
        check_texts(with_source(tiny_config, tmp_path / "text", skip))
    write(tmp_path / "text" / "b.jsonl", {"text": "One."})
    assert check_texts(with_source(tiny_config, tmp_path / "text", skip)) == []


@pytest.mark.parametrize("key", ["data.sources.0", "data.held_out"])
def test_a_source_without_a_shard_is_refused_by_its_key(tiny_config, tmp_path, key):
    folder = tmp_path / "text"
    folder.mkdir()

    def refusal(*overrides: str) -> str:
        with pytest.raises(RegrowError) as error:
            check_texts(load_config(tiny_config, [f"{key}.path={folder}", *overrides]), elsewhere=True)
        return str(error.value)

    assert refusal().startswith(f"{key} '{folder}': no intact .jsonl")
    (folder / "a.txt").write_text("One.")
    assert refusal().endswith("there is a.txt: if that is a shard, set the source's format: jsonl, tar or parquet")
    write(folder / "a.jsonl", {"text": "One."})
    assert "(files: 'b*')" in refusal(f"{key}.files=b*")
    with pytest.raises(RegrowError, match=rf"^{key} '{folder}2': no such file or folder"):
        check_texts(load_config(tiny_config, [f"{key}.path={folder}2"]))
    assert check_texts(load_config(tiny_config, [f"{key}.path={folder}"])) == []


def test_white_space_is_no_text(tiny_config, tmp_path):
    write(tmp_path / "text" / "a.jsonl", {"text": " "}, {"text": "\n\t"}, {"text": None})
    with pytest.raises(RegrowError, match=r"not one record with text; .* 3 records .*white space alone 2, null 1"):
        check_texts(with_source(tiny_config, tmp_path / "text"))
    # What was not read to its end may have some, and is left to stage data.
    write(tmp_path / "text" / "b.jsonl", *[{"text": " "}] * FIRST)
    assert len(check_texts(with_source(tiny_config, tmp_path / "text"))) == 1
    write(tmp_path / "text" / "c.jsonl", {"text": " "}, {"text": "One."})
    assert check_texts(with_source(tiny_config, tmp_path / "text")) == []


def test_a_parquet_file_without_a_row_is_left_out_as_a_listing_does(tiny_config, count, tmp_path):
    (tmp_path / "kept").mkdir()
    none = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(none, tmp_path / "kept" / "a.parquet")
    write(tmp_path / "kept" / "b.jsonl", {"text": "Water is wet. " * 30})
    assert check_texts(with_source(tiny_config, tmp_path / "kept")) == []
    count()


def test_a_record_without_text_is_met_at_once_where_it_is_to_end_the_run(tiny_config, tmp_path):
    raising = "data.on_no_text=raise"
    write(tmp_path / "text" / "a.jsonl", {"text": "One."}, {"text": None}, {"text": "Two."}, {"text": ""})
    with pytest.raises(RegrowError, match=r"2 records without text \(null 1, empty 1\), the first, at record 1"):
        check_texts(with_source(tiny_config, tmp_path / "text", raising))
    write(tmp_path / "text" / "a.jsonl", *[{"text": "One."}] * (FIRST - 1), {"text": None}, {"text": None})
    with pytest.raises(RegrowError, match=r"1 record without text \(null 1\) among its first 1,000, .* at record 999"):
        check_texts(with_source(tiny_config, tmp_path / "text", raising))
    assert check_texts(with_source(tiny_config, tmp_path / "text")) == []


@pytest.fixture
def count(tiny_config: Path, tiny_model: Path, tmp_path: Path) -> Callable[..., None]:
    """``count(override, ...)``: the tokens of the held-out text in tmp_path/kept, whose rows have 64."""

    def call(*overrides: str) -> None:
        config = load_config(tiny_config, [f"data.held_out.path={tmp_path}/kept", *overrides])
        check_held_out(config, read_encoder(config, tiny_model))

    return call


def test_held_out_text_is_counted_up_to_the_longest_row_that_is_asked_for(count, tmp_path, monkeypatch):
    write(tmp_path / "kept" / "a.jsonl", *[{"text": "Water is wet. "}] * 30)
    count()
    count("evaluate.perplexity.held_out.length=100", "prune.compare.length=100")
    compared = "prune.compare={enabled: true, length: 1000}"
    with pytest.raises(RegrowError, match=r"not one row of prune\.compare\.length \(1,000\); .* or lower that$"):
        count(compared)
    with pytest.raises(RegrowError, match=r"row of evaluate\.perplexity\.held_out\.length \(1,500\); .* lower that$"):
        count("evaluate.perplexity.held_out.length=1500", "prune.compare.length=1500")
    with pytest.raises(RegrowError, match=r"data\.row_length \(2,048\) or prune\.compare\.length \(1,000\); .* those$"):
        count(compared, "data.row_length=2048")
    # Read no further than needed, and not at all where it is large.
    with (tmp_path / "kept" / "a.jsonl").open("a") as file:
        file.write("no json\n")
    count()
    with pytest.raises(DamagedShard):
        count("data.row_length=2048")
    count("data.row_length=2048", "data.on_damage=skip")
    monkeypatch.setattr(checks, "SMALL", 100)
    count("data.row_length=2048")
    count("data.row_length=2048", "data.held_out.path=owner/name")
    count("data.row_length=2048", "data.held_out=null")


LENGTHS = {
    "data.row_length": "data.row_length=200",
    "score.length": "score.length=200",
    "prune.compare.length": "prune.compare={enabled: true, length: 200}",
    "evaluate.perplexity.held_out.length": "evaluate.perplexity.held_out.length=200",
    "evaluate.perplexity.own.length": "evaluate.perplexity.own={text: own.txt, length: 200}",
}


@pytest.mark.parametrize("key", LENGTHS)
def test_rows_that_a_table_of_positions_has_no_place_for_are_refused(tiny_config, key):
    """GPT-2 and OPT (whose table has two rows more) learn their positions; Llama turns by them, at any length."""
    least = [
        "data.row_length=64",
        "score.length=32",
        "prune.compare.enabled=false",
        "evaluate.perplexity.held_out.length=64",
    ]
    config = load_config(tiny_config, [*least, LENGTHS[key]])
    for family, size in (("gpt2", {"n_positions": 128}), ("opt", {"max_position_embeddings": 128})):
        with pytest.raises(RegrowError, match=rf"{key} \(200\): the model has a table of 128 positions"):
            check_lengths(config, build(family, **size))
        assert check_lengths(load_config(tiny_config, least), build(family, **size)) == []
    assert check_lengths(config, build("llama", max_position_embeddings=128)) == [
        f"{key} 200 is longer than the model's 128 positions"
    ]
