"""Keys: what a value may be, and what is said where it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import (
    load_config,
)
from tests.config.kit import LEAST, refused, write

# Numbers


@pytest.mark.parametrize(
    ("text", "number"), [("150e9", 150_000_000_000), ("150.0e+9", 150_000_000_000), ("37000000000", 37_000_000_000)]
)
def test_token_counts_are_whole_numbers(file: Path, text: str, number: int) -> None:
    tokens = load_config(file, [f"train.tokens={text}"]).train.tokens
    assert tokens == number and type(tokens) is int


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("train.tokens", "10B", "10e9"),
        ("train.tokens", "2.5 M", "2.5e6"),
        ("train.tokens", "300k", "300e3"),
        ("train.tokens", "1,000,000", "1000000"),
        ("train.tokens", "1 000 000", "1000000"),
        ("train.tokens", "10 billion", "10e9"),
        ("train.tokens", "1.5T", "1.5e12"),
        ("train.clip", "1,000", "1000"),
        ("evaluate.processes", "2k", "2e3"),
    ],
)
def test_a_number_with_a_word_in_it_is_answered_with_what_to_write(
    file: Path, key: str, text: str, wanted: str
) -> None:
    message = refused(file, f"{key}={text}")
    assert f"write {wanted}; got {text!r}" in message, message
    load_config(file, [f"{key}={wanted}"] if key != "evaluate.processes" else [])


@pytest.mark.parametrize("text", ["many", "10e9 tokens", "1,5", "10X", "1,00"])
def test_what_is_no_number_is_not_answered_with_one(file: Path, text: str) -> None:
    assert "write" not in refused(file, f"train.tokens={text}")


def test_a_quoted_number_is_a_number(file: Path) -> None:
    assert load_config(file, ["train.global_batch='512'"]).train.global_batch == 512


def test_folders_of_the_user_s_own_are_found(file: Path) -> None:
    config = load_config(file, ["run.folder=~/runs", "data.cache=~/shards"])
    assert (config.run.folder, config.data.cache) == (Path.home() / "runs", Path.home() / "shards")


@pytest.mark.parametrize("key", ["run.folder", "data.cache", "data.tokenised", "data.sources.0.path", "model.path"])
def test_a_home_that_is_nobody_s_is_refused(file: Path, key: str) -> None:
    assert f"{key}: ~nobody-of-that-name is nobody's home here; got" in refused(file, f"{key}=~nobody-of-that-name/x")


@pytest.mark.parametrize("key", ["model.path", "data.sources.0.path"])
def test_an_empty_path_is_refused(file: Path, key: str) -> None:
    """It would be the folder where the command was started."""
    assert f"{key}: it is empty; got ''" in refused(file, f"{key}=''")


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_small_rates_are_numbers(file: Path, text: str) -> None:
    assert load_config(file, [f"train.learning_rate={text}"]).train.learning_rate == 0.0001


def test_numbers_in_the_file_are_read_alike(tmp_path: Path) -> None:
    text = LEAST.replace("tokens: 37e9", "tokens: 150e9\n  learning_rate: 1e-4\n  eps: 1e-8")
    train = load_config(write(tmp_path / "c.yaml", text)).train
    assert (train.tokens, train.learning_rate, train.eps) == (150_000_000_000, 0.0001, 0.00000001)


@pytest.mark.parametrize(
    "override",
    [
        "train.tokens=0",
        "train.tokens=1.5",
        "train.tokens=-3e9",
        "train.tokens=many",
        "train.tokens=true",
        "train.tokens=null",
        "train.micro_batch=0",
        "train.processes=0",
        "train.processes=some",
        "train.zero_stage=4",
        "train.zero_stage=true",
        "train.learning_rate=0",
        "train.learning_rate=.inf",
        "train.learning_rate=.nan",
        "train.learning_rate=true",
        "train.betas=[0.9]",
        "train.betas=[0.9, 1.0]",
        "train.betas.0=-0.1",
        "train.warmup=1",
        "train.schedule=sawtooth",
        "train.no_decay=[biases]",
        "prune.ratio=1",
        "prune.ratio=0",
        "prune.blocks=[-1]",
        "prune.blocks=[1.5]",
        "prune.blocks=7",
        "prune.protect_first=-1",
        "data.row_length=4",
        "data.sources=[]",
        "data.sources.0=first",
        "data.cache=3",
        "score.criteria=[]",
        "model.dtype=float8",
        "run.name=..",
        "run.name=a/b",
    ],
)
def test_a_value_out_of_range_is_refused_by_key_and_override(file: Path, override: str) -> None:
    dotted, _, value = override.partition("=")
    message = refused(file, override)
    assert f"override {override!r}: {dotted}" in message, message
    assert len(message.splitlines()) == 1, f"one mistake, one line:\n{message}"
    assert value == "[]" or any(part in message for part in ("got", "required")), message


def test_rates_that_cross_are_refused(file: Path) -> None:
    assert "final_learning_rate 0.01 is above learning_rate 0.0001" in refused(file, "train.final_learning_rate=1e-2")
