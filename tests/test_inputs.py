"""Inputs: one way from a config to text, each part loaded once, and the same as what stages drew from it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from pipeline import inputs
from pipeline.config import load_config
from pipeline.data import tokens
from pipeline.errors import RegrowError
from pipeline.files import read_json
from pipeline.importance.linear import split_for_maps
from pipeline.inputs import Inputs
from pipeline.run import Run


@pytest.fixture(scope="module")
def text(logged: Path) -> Inputs:
    """The inputs of a run that is done, and logged the rows of every step."""
    config = load_config(logged)
    return Inputs(config, Run(config.run.folder / config.run.name))


def test_the_manifest_and_the_tokenizer_are_read_once(logged, monkeypatch):
    config = load_config(logged)
    read = []
    for module, name in ((inputs, "read_json"), (tokens, "load_tokenizer")):
        known = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *asked, known=known, name=name: read.append(name) or known(*asked))
    text = Inputs(config, Run(config.run.folder / config.run.name))
    assert read == [], "something is loaded before it is asked for"
    for _ in range(2):
        assert len(text.corpus) == 8 and len(text.held_out) == 1
        assert text.identity.manifest == text.manifest["hash"]
        next(iter(text.stream()))
        text.held_out_rows(32, "document", 4)
        text.calibration()
    assert sorted(read) == ["load_tokenizer", "read_json"], f"loaded more than once: {read}"


def test_calibration_is_what_stage_score_drew(text):
    sequences, origins = text.calibration()
    drawn = read_json(text.run.stage("score") / "calibration.json")
    assert sequences.tolist() == drawn["input_ids"] and origins == drawn["origins"]


@pytest.mark.parametrize("fit", ["maps", "healing"])
def test_what_is_fitted_reads_rows_as_training_packs_them_in_the_order_of_a_seed(text, fit):
    """What stands between documents is in them, which is nowhere in a crop of one document."""
    other = text.config.model_copy(deep=True)
    section = {"maps": other.score, "healing": other.train.healing}[fit]
    section.__dict__["seed"] += 1
    found, again, drawn = (
        source.for_healing() if fit == "healing" else source.for_maps(512)
        for source in (text, text, Inputs(other, text.run))
    )
    count = text.count_for_maps(512) if fit == "maps" else section.sequences
    assert found.shape == (count, section.length) and found.dtype == torch.int64
    ends, crops = (found == text.encoder.separator).sum(), (text.calibration()[0] == text.encoder.separator).sum()
    assert ends > found.numel() / 500 and not crops, f"{ends} ends of documents in {found.numel()} tokens"
    assert again.equal(found) and not drawn.equal(found)


def test_maps_are_judged_on_documents_that_they_are_not_fitted_on_whatever_a_row_of_training_is(text):
    maps = text.for_maps(512)
    fit, judge = (torch.cat(batches) for batches in split_for_maps(maps, 4))
    windows = [{tuple(row[at : at + 12]) for row in rows.tolist() for at in range(21)} for rows in (fit, judge)]
    assert len(windows[1]) > 50 and not windows[0] & windows[1], "pieces of one document are on both sides"
    longer = text.config.model_copy(deep=True)
    longer.data.__dict__["row_length"] = 48
    assert Inputs(longer, text.run).for_maps(512).equal(maps)


def test_text_for_maps_is_not_read_twice(text):
    greedy = text.config.model_copy(deep=True)
    greedy.score.__dict__["linear_sequences"] = 100_000
    with pytest.raises(RegrowError, match=r"score\.linear_sequences 100,000 of 32 tokens .* are more text than"):
        Inputs(greedy, text.run).for_maps(64)


def test_the_stream_goes_on_at_any_step_with_the_rows_that_were_trained_on(text):
    lines = (text.run.stage("train") / "samples.jsonl").read_text().splitlines()
    trained = [row[:2] for line in lines for row in json.loads(line)["rows"]]
    batch = text.config.train.global_batch
    assert [[row.index, row.lane] for row in islice(text.stream(), len(trained))] == trained
    behind = {row.lane: row.cursor for row in islice(text.stream(), text.config.data.lanes)}
    later = islice(text.stream(start=text.config.data.lanes, cursors=behind), 3)
    assert [[row.index, row.lane] for row in later] == trained[text.config.data.lanes :][:3]
    shares = [[row.index for row in islice(text.stream(rank=rank, processes=2), batch)] for rank in (0, 1)]
    assert [row for pair in zip(*shares, strict=True) for row in pair] == list(range(2 * batch))


def test_held_out_rows_are_of_the_held_out_set_alone_and_none_where_nothing_is(text):
    rows = text.held_out_rows(32, "none", 5)
    assert rows.shape == (5, 32) and rows.dtype == torch.int64
    places = {shard.path for shard in text.held_out}
    assert places and not places & {shard.path for shard in text.corpus}
    without = Inputs(text.config, text.run)
    without.manifest = {**text.manifest, "held_out": []}
    assert without.held_out_rows(32, "none", 5) is None


def test_steps_are_whole_and_reach_the_budget(text):
    config = text.config
    for budget in (1, config.tokens_per_step, config.tokens_per_step + 1, 10 * config.tokens_per_step - 1):
        asked = config.model_copy(update={"train": config.train.model_copy(update={"tokens": budget})})
        assert (asked.steps - 1) * asked.tokens_per_step < budget <= asked.steps * asked.tokens_per_step
