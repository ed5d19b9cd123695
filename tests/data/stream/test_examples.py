"""Examples: a row each, the response alone counted, in one order on any number of processes and after any resume."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.shards import build_manifest, read_manifest
from pipeline.data.stream.examples import encode_examples, one_a_row
from pipeline.data.stream.position import Cursor
from pipeline.data.texts import text_of
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from tests.data.corpora import cursors_behind, differs, row_stream, shard, take, together, write_shard
from tests.data.exchanges import FORM, records, write_records

LENGTH = 32


@pytest.fixture(scope="module")
def mixed(texts, tmp_path_factory):
    """Instruction data in jsonl and parquet, and a source of text; 12 lanes."""
    folder = tmp_path_factory.mktemp("exchanges")
    made = records(90)
    shards = [write_records(folder / "a.jsonl", made[:50]), write_records(folder / "b.parquet", made[50:])]
    plain = shard(write_shard(folder / "c.jsonl", [text[:300] for text in texts[:40]]), source=1)
    return [*shards, plain]


def spoken(tokenizer, row) -> tuple[str, str]:
    """What of a row stands before its targets, and the targets."""
    end = int(row.cu_seqlens[1])
    first = int(np.flatnonzero(row.counted)[0]) if row.counted.any() else end
    return tokenizer.decode(row.input_ids[:first]), tokenizer.decode(row.input_ids[first:end])


def test_every_record_is_a_row_whose_response_alone_is_counted(mixed, encoder, tmp_path):
    """An epoch of a lane of its own: each record once, in its words, behind BOS and before the separator."""
    stream = row_stream(mixed[:2], tmp_path, encode=encoder, row_length=256, lanes=1)
    rows, tokenizer = take(iter(stream), 90), encoder.tokenizer
    said = {spoken(tokenizer, row) for row in rows}
    wanted = [text_of(record, FORM) for record in records(90)]
    assert said == {(f"<s>{text[: text.prompt]}", f"{text[text.prompt :]}</s>") for text in wanted}
    for row in rows:
        end = int(row.cu_seqlens[1])
        assert row.cu_seqlens.tolist() == [0, end, 256] and not row.counted[end:].any(), "padding is a target"
        assert set(row.input_ids[end:].tolist()) == {encoder.separator}


def test_a_long_example_is_cut_and_one_without_a_response_in_the_row_leaves_no_trace(encoder):
    given = [
        {"instruction": "Say it.", "output": "word " * 40},
        {"instruction": "word " * 40, "output": "no"},
        {"instruction": "Say it.", "output": "yes"},
    ]
    examples = list(encode_examples(encoder, [text_of(record, FORM) for record in given]))
    documents = [((0, 0, number), 0, example) for number, example in enumerate(examples)]
    (long, edges, behind, counted), (_, _, last, _) = one_a_row(documents, LENGTH, padding=encoder.separator)
    assert len(long) == LENGTH and edges.tolist() == [0, LENGTH] and behind == Cursor(0, 0, 0, len(examples[0]))
    assert counted.tolist() == [number >= examples[0].prompt for number in range(LENGTH)]
    assert encoder.separator not in long.tolist(), "a response that was cut is said to end"
    assert last.document == 2
    taken = [(place, len(example), example) for place, _, example in documents[:1]]
    assert not list(one_a_row(taken, LENGTH, padding=0)), "an example that was given is given again"


def test_a_token_that_reaches_from_the_prompt_into_the_response_is_a_target(encoder):
    """A prompt that ends in a space, which the tokenizer puts to the word behind it."""
    form = replace(FORM, template="{instruction} ")
    (example,) = encode_examples(encoder, [text_of({"instruction": "Say", "output": "the"}, form)])
    assert encoder.tokenizer.decode(example.ids[example.prompt :]) == " the</s>"


def test_a_lane_of_prompts_that_fill_their_rows_is_refused(encoder):
    (example,) = encode_examples(encoder, [text_of({"instruction": "word " * 40, "output": "no"}, FORM)])
    epochs = (((epoch, 0, 0), 0, example) for epoch in range(9))
    with pytest.raises(RegrowError, match=r"data\.row_length 16: the prompt of every example"):
        next(one_a_row(epochs, 16, padding=0))


def test_the_order_is_the_same_on_1_2_and_4_processes_and_after_resumes(mixed, encoder, tmp_path):
    how = {"encode": encoder, "row_length": LENGTH, "weights": (0.6, 0.4)}
    expected = take(together(mixed, tmp_path, 1, 0, **how), 360)
    assert max(row.cursor.cursors[0].epoch for row in expected) >= 1, "not an epoch was read through"
    assert {bool(row.counted.all()) for row in expected} == {True, False}, "not both kinds of rows are there"
    for processes, workers in ((1, 3), (2, 0), (2, 2), (4, 1)):
        rows = take(together(mixed, tmp_path, processes, workers, **how), 360)
        assert differs(rows, expected) is None, f"{processes} x {workers}: {differs(rows, expected)}"
    for at, processes in ((48, 2), (204, 4), (312, 1)):
        behind = {"start": at, "cursors": cursors_behind(expected[:at])}
        rest = take(together(mixed, tmp_path, processes, 0, **how, **behind), 360 - at)
        assert differs(rest, expected[at:]) is None, f"resumed at {at}: {differs(rest, expected[at:])}"


def test_rows_of_text_alone_carry_no_mask(mixed, encoder, tmp_path):
    plain = [replace(mixed[2], source=0)]
    stream = row_stream(plain, tmp_path, encode=encoder, row_length=LENGTH, lanes=4)
    assert all(row.counted is None for row in islice(stream, 8))


def test_the_manifest_keeps_the_form(mixed, tmp_path):
    write_json(tmp_path / "manifest.json", build_manifest(mixed, []))
    assert read_manifest(read_json(tmp_path / "manifest.json"))[0] == mixed
    other = [replace(mixed[0], text_key=replace(FORM, template="{instruction}: ")), *mixed[1:]]
    assert build_manifest(other, [])["hash"] != build_manifest(mixed, [])["hash"], "another prompt, the same corpus"


def test_a_parquet_file_without_the_response_s_column_is_refused(tmp_path: Path):
    with pytest.raises(RegrowError, match=r"no column 'output'; set text_key .* instruction"):
        list(_read(write_records(tmp_path / "x.parquet", [{"instruction": "Add."}])))


def test_a_parquet_file_without_inputs_is_read(tmp_path: Path):
    given = [{"instruction": "Add.", "output": "3"}, {"instruction": "Add.", "output": None}]
    assert list(_read(write_records(tmp_path / "x.parquet", given))) == ["Q: Add.\nA:\n3"]


def _read(one):
    from pipeline.data.formats.documents import read_documents

    return [text for _, text in read_documents(Path(one.name), one.format, one.text_key)]
