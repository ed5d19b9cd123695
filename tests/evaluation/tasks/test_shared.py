"""Batches that processes share: as lm-eval forms them, and the same figures however they are divided and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipeline.evaluation.figures import computed_by
from pipeline.evaluation.tasks import shared
from pipeline.evaluation.tasks.answers import Answers
from pipeline.evaluation.tasks.shared import SharedModel
from pipeline.world import ALONE
from tests import ROOT
from tests.evaluation.tasks.program import judged


@pytest.fixture(scope="module")
def found(once, tiny_model, data) -> Path:
    """What one, two and three processes found: NUMBER/RANK.json. Not to be changed."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "tests.evaluation.tasks.program", str(tiny_model), str(data), str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    return once("shared-tasks", make)


def of(folder: Path, size: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{size}/{rank}.json").read_text()) for rank in range(size)]


def test_figures_are_the_same_on_any_number_of_processes(found):
    (alone,) = of(found, 1)
    values = [entry["value"] for entry in alone["entries"].values()]
    assert max(values) > 0 and len(alone["items"]["arc_easy"]) == 12, f"nothing was answered: {values}"
    for size in (2, 3):
        for rank, one in enumerate(of(found, size)):
            assert one["entries"] == alone["entries"] and one["items"] == alone["items"], f"rank {rank} of {size}"


def test_each_batch_is_computed_by_one_process(found):
    (alone,) = of(found, 1)
    for size in (2, 3):
        turns = [one["at"] for one in of(found, size)]
        assert sorted(chain.from_iterable(turns)) == sorted(alone["at"]) and all(turns), f"{size} processes: {turns}"


def test_what_was_answered_before_a_kill_is_not_computed_again(found, tiny_model, data, tmp_path):
    """Half of the lines that two processes had written, and a torn one; then one process alone."""
    (alone,) = of(found, 1)
    kept = tmp_path / "answers" / "one"
    kept.mkdir(parents=True)
    lines = 0
    for rank in range(2):
        whole = (found / f"2/answers/one/{rank}.jsonl").read_text().splitlines(keepends=True)
        half = whole[: len(whole) // 2]
        lines += len(half)
        (kept / f"{rank}.jsonl").write_text("".join(half) + whole[-1][:9])
    threads = torch.get_num_threads()
    again = judged(tiny_model, data, tmp_path, ALONE)
    torch.set_num_threads(threads)
    assert again["entries"] == alone["entries"] and again["items"] == alone["items"]
    assert lines and len(again["at"]) == len(alone["at"]) - lines, "not just what was missing was computed"


def requests(kind: str, pairs: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, pair, number) for number, pair in enumerate(pairs)]


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_answers_are_lm_evals_own_to_the_last_digit(asked_model, tmp_path, batch):
    """Choices of a token and of several, contexts of one kind and of all lengths, texts that are made by two rules."""
    model, tokenizer = asked_model
    choices = [
        (f"The {word} " * (1 + number % 5), f" {end}")
        for number, word in enumerate(["city", "river", "old king"] * 4)
        for end in ("a", "b", "of the north side", "war")
    ]
    rules = [{"until": ["\n"], "max_gen_toks": 3, "do_sample": False}, {"until": ["x"], "max_gen_toks": 5}]
    texts = [(f"{number} and {number} is", rules[number % 2]) for number in range(7)]
    answers = Answers(tmp_path, 0)
    ours = SharedModel(model, tokenizer, batch=batch, world=ALONE, answers=answers, at=lambda what: None)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
    assert ours.loglikelihood(requests("loglikelihood", choices)) == theirs.loglikelihood(
        requests("loglikelihood", choices), disable_tqdm=True
    )
    assert ours.generate_until(requests("generate_until", texts)) == theirs.generate_until(
        requests("generate_until", texts), disable_tqdm=True
    )
    whole = requests("loglikelihood_rolling", [("The old city by the river. " * 30,), ("war",)])
    assert ours.loglikelihood_rolling(whole) == theirs.loglikelihood_rolling(whole, disable_tqdm=True)
    answers.close()


def test_under_autocast_answers_are_lm_evals_own_in_that_precision_and_not_those_without(asked_model, tmp_path):
    """As training computes under ZeRO 0: weights in fp32, products in bf16. What was kept without it is not taken."""
    model, tokenizer = asked_model
    asked = requests("loglikelihood", [("The old city by", f" the {end}") for end in ("river", "sea", "north side")])
    answers = Answers(tmp_path, 0)

    def ask() -> list[tuple[float, bool]]:
        ours = SharedModel(model, tokenizer, batch=2, world=ALONE, answers=answers, at=lambda what: None)
        return ours.loglikelihood(asked)

    plain = ask()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ask()
        assert torch.is_autocast_enabled("cpu"), "autocast was left off for training"
    how = {"backend": "causal", "batch_size": 2}
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, mixed_precision_dtype="bfloat16", **how)
    assert mixed == theirs.loglikelihood(asked, disable_tqdm=True)
    assert mixed != plain and ask() == plain
    assert [value for value, _ in mixed] == pytest.approx([value for value, _ in plain], rel=0.02)
    answers.close()


def test_answers_of_another_card_or_version_are_not_taken(asked_model, tmp_path, monkeypatch):
    """Known by the card's name: a GPU of another kind rounds otherwise."""
    model, tokenizer = asked_model
    asked, turns = requests("loglikelihood", [("The old city by", " the river")]), []
    answers = Answers(tmp_path, 0)

    def computed(**other: str) -> int:
        monkeypatch.setattr(shared, "computed_by", lambda device: computed_by(device) | other)
        before = len(turns)
        SharedModel(model, tokenizer, batch=2, world=ALONE, answers=answers, at=turns.append).loglikelihood(asked)
        return len(turns) - before

    assert [computed(), computed()] == [1, 0]
    assert [computed(device="another"), computed(versions="others"), computed(device="another")] == [1, 1, 0]
    monkeypatch.setattr(shared, "harness", lambda: "lm-eval 0.4.14")
    assert computed() == 1
    answers.close()


def test_errors_without_a_formula_are_drawn_by_one_process_for_all(found):
    """LAMBADA's perplexity has none."""
    for size in (1, 2, 3):
        ranks = of(found, size)
        assert [one["drawn"] for one in ranks] == [1, *[0] * (size - 1)]
        errors = [one["entries"]["lambada_openai"]["metrics"]["perplexity"]["stderr"] for one in ranks]
        assert errors[0] > 0 and errors == [errors[0]] * size
