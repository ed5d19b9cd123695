"""The keys of perplexity: held-out rows always, texts by name, presets under what is stated, old keys refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config import dump_config, load_config
from tests import ROOT
from tests.config.kit import LEAST, refused, write

TEXTS = """\
evaluate:
  perplexity:
    held_out: {rows: 7}
    own: {text: some/text.txt, length: 64, stride: 16, bos: row}
    c4: {dataset: allenai/c4, subset: en, split: validation, rows: 10}
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.yaml", LEAST + TEXTS)


def test_held_out_rows_are_always_there_and_texts_keep_their_order(file: Path, texts: Path) -> None:
    plain = load_config(file).evaluate.perplexity
    assert (plain.held_out.rows, plain.held_out.bos, plain.texts) == (256, "document", {})
    found = load_config(texts).evaluate.perplexity
    assert found.held_out.rows == 7 and list(found.texts) == ["own", "c4"]
    assert (found.texts["own"].bos, found.texts["own"].join) == ("every", "\n\n"), "row is another word for every"
    assert load_config(texts, ["evaluate.perplexity.own.length=32"]).evaluate.perplexity.texts["own"].length == 32
    assert list(load_config(texts, ["evaluate.perplexity.own=null"]).evaluate.perplexity.texts) == ["c4"]


def test_what_is_written_reads_back_and_the_stage_is_known_by_its_texts(texts: Path) -> None:
    config = load_config(texts, ["evaluate.perplexity.preset=shortened-llm", "evaluate.perplexity.ptb=null"])
    assert load_config(write(texts.with_name("again.yaml"), dump_config(config))) == config
    read = config.read_by("evaluate")
    assert read["evaluate.perplexity.own"]["stride"] == 16 and read["evaluate.perplexity.held_out.rows"] == 7
    assert "evaluate.perplexity.preset" not in read, "the same texts without the preset would be another stage"
    assert not any("perplexity.own" in key for key in config.read_by("train"))


@pytest.mark.parametrize("name", ["length", "bos", "rows"])
@pytest.mark.parametrize("value", ["8", "null"])
def test_an_old_key_is_refused_with_the_line_to_write(tmp_path: Path, name: str, value: str) -> None:
    path = write(tmp_path / "old.yaml", LEAST + f"evaluate:\n  perplexity:\n    {name}: {value}\n")
    found = refused(path)
    line = len((LEAST + TEXTS).splitlines()) - len(TEXTS.splitlines()) + 3
    assert found.startswith(f"{path}:{line}: evaluate.perplexity.{name}: it is a key of the text held_out now"), found
    assert f"write perplexity: {{held_out: {{{name}: {value}}}}}" in found, found
    (written,) = [part for part in found.split() if part.startswith(f"evaluate.perplexity.held_out.{name}=")]
    if name != "bos":  # which is none of these values
        load_config(write(tmp_path / "new.yaml", LEAST), [written.rstrip(";")])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.perplexity=shortened-llm", "for a preset write perplexity: {preset: shortened-llm}"),
        ("evaluate.perplexity.preset=shortened", "did you mean 'shortened-llm'?"),
        ("evaluate.perplexity.held_out=null", "it is always measured"),
        ("evaluate.perplexity.own.lenght=3", "did you mean 'evaluate.perplexity.own.length'?"),
        (
            "evaluate.perplexity.own.dataset=a/b",
            "exactly one of text (local) and dataset (on the hub) must be set; b",
        ),
        ("evaluate.perplexity.new={length: 3}", "must be set; neither is"),
        ("evaluate.perplexity.new={dataset: a/b}", "dataset needs its split"),
        ("evaluate.perplexity.own.split=test", "split goes with dataset; text is local"),
        ("evaluate.perplexity.own.stride=64", "stride 64 leaves tokens out: a row has 63 tokens of text"),
        ("evaluate.perplexity.own.bos=always", "evaluate.perplexity.own.bos: "),
        ("evaluate.perplexity={'a b': {text: x}}", "letters, digits, _ and - alone; 'a b' has others"),
    ],
)
def test_what_no_text_can_be_is_named(texts: Path, override: str, message: str) -> None:
    found = refused(texts, override)
    assert message in found, found


def test_the_preset_is_shortened_llms_protocol_under_what_is_stated(file: Path) -> None:
    preset = "evaluate.perplexity.preset=shortened-llm"
    texts = load_config(file, [preset]).evaluate.perplexity.texts
    assert list(texts) == ["wikitext2", "wikitext2-bos", "ptb", "ptb-bos"]
    # The BOS comes to 128 tokens of text where each row has one.
    assert [(text.length, text.bos) for text in texts.values()] == [(128, "document"), (129, "every")] * 2
    assert {text.join for text in texts.values()} == {"\n\n"} and {text.stride for text in texts.values()} == {None}
    assert (texts["wikitext2"].subset, texts["wikitext2"].split) == ("wikitext-2-raw-v1", "test")
    assert (texts["ptb"].split, texts["ptb"].column) == ("validation", "sentence")
    own = ["evaluate.perplexity.wikitext2-bos.text=wiki.test.raw", "evaluate.perplexity.ptb.length=256"]
    texts = load_config(file, [preset, *own]).evaluate.perplexity.texts
    assert (texts["wikitext2-bos"].text, texts["wikitext2-bos"].dataset) == ("wiki.test.raw", None)
    assert (texts["wikitext2-bos"].length, texts["wikitext2-bos"].bos) == (129, "every")
    assert (texts["ptb"].length, texts["ptb"].dataset) == (256, "ptb-text-only/ptb_text_only")


def test_the_example_of_the_docs_is_a_config(tmp_path: Path) -> None:
    example, *_ = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), flags=re.S)
    texts = load_config(write(tmp_path / "docs.yaml", LEAST + example)).evaluate.perplexity.texts
    assert list(texts) == ["wikitext2", "c4"]
