"""Choosing and comparing as a notebook does: a model and ids in memory, no config, no run, one process."""

from __future__ import annotations

import math
import re
from copy import deepcopy

import pytest
import torch

from pipeline.criteria import CONTROLS
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.importance.choosing import Removals, Way, choose
from pipeline.importance.comparison import compare_ways
from pipeline.importance.controls import control_blocks
from pipeline.importance.criteria import Settings, Text
from pipeline.importance.cut import Cut
from pipeline.importance.greedy import greedy_rounds
from pipeline.importance.scoring import score_blocks
from pipeline.importance.selection import choose_blocks, choose_window
from pipeline.model.blocks import find_blocks, remove_blocks
from pipeline.model.describe import Sizes
from pipeline.model.load import load_model
from pipeline.model.loss import next_token_losses
from tests import ROOT
from tests.families import BLOCKS, VOCABULARY, build

PROTECT = {"protect_first": 1, "protect_last": 1}
TWO = Cut(remove=2, **PROTECT)


def ids(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


SEQUENCES, ROWS = ids(16, 24, 1), ids(3, 16, 2)


@pytest.fixture(scope="module")
def model():
    """A Llama of six blocks. Not to be changed."""
    return build("llama")


@pytest.fixture(scope="module")
def scores(model):
    return score_blocks(
        model, SEQUENCES, ["ppl", "angular_last", "linear"], Settings(ppl_lengths=(2,), linear_lengths=(2,))
    )


@torch.no_grad()
def perplexity(model, removed, rows):
    """Of the model from which the blocks are really gone."""
    cut = remove_blocks(deepcopy(model), removed) if removed else model
    return next_token_losses(cut(rows, use_cache=False).logits, rows).double().mean().exp().item()


def test_the_page_of_scoring_shows_a_notebook_that_works(model, tmp_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8"), re.S)
    model.save_pretrained(tmp_path / "model")
    code = code.replace("path/of/a/model", str(tmp_path / "model"))
    assert "Cut(remove=9)" in code
    names = {"sequences": SEQUENCES, "rows": ROWS}
    exec(compile(code.replace("Cut(remove=9)", f"Cut(remove=2, **{PROTECT})"), "docs/scoring.md", "exec"), names)
    loaded = load_model(tmp_path / "model")
    assert names["removed"] == sorted(one.removed for one in greedy_rounds(loaded, SEQUENCES.split(1), TWO))
    assert len(find_blocks(names["model"])) == BLOCKS - 2
    said = capsys.readouterr().out
    assert said.count("greedy round") == 2 and "comparison 1 of" in said
    found = {(one["by"], one["selection"]): one for one in names["comparison"]["sets"]}
    assert {by for by, way in found if way == "control"} == set(CONTROLS)
    assert {("ppl", "one-shot"), ("ppl", "greedy"), ("angular_last", "contiguous")} <= set(found)
    for one in (found["ppl", "greedy"], found["tail", "control"]):
        for text, rows in (("calibration", SEQUENCES), ("held_out", ROWS)):
            assert one["perplexity"][text] == pytest.approx(perplexity(loaded, one["blocks"], rows), rel=2e-3), text
    assert names["comparison"]["held_out"] == {"rows": 3, "length": 16}


def test_each_way_finds_what_its_own_function_finds(model, scores):
    sizes = Sizes.of(model)
    order = (3, 0, 2, 1, 5, 4)
    for way, expected in (
        (Way("angular_last"), choose_blocks(scores["angular_last"]["order"], TWO)),
        (Way("linear", "contiguous"), choose_window(scores["linear"]["windows"], TWO)),
        (Way("random", "control", seed=3), control_blocks("random", BLOCKS, TWO, seed=3)),
        (Way("uniform", "control"), control_blocks("uniform", BLOCKS, TWO)),
        (Way("config", "given", order=order), [2, 3]),
    ):
        assert choose(way, TWO, scores, sizes) == expected, way
    half = Cut(parameters=sizes.whole - sizes.blocks[0] - 1, **PROTECT)
    assert choose(Way("tail", "control"), half, scores, sizes) == [3, 4], "the fewest that reach the target are two"
    assert choose(Way("ppl"), Cut(blocks=(5, 0)), scores, sizes) == [0, 5]
    with pytest.raises(RegrowError, match="ask Removals"):
        choose(Way(selection="greedy"), TWO, scores, sizes)
    with pytest.raises(RegrowError, match="a perplexity does not say how many"):
        choose(Way("ppl"), Cut(perplexity=9.0), scores, sizes)


def test_a_budget_is_followed_along_an_order_or_greedily(model, scores):
    text = Text(SEQUENCES, 4)
    order = [block for block in scores["angular_last"]["order"] if 0 < block < BLOCKS - 1]
    steps = [perplexity(model, sorted(order[:count]), SEQUENCES) for count in (1, 2, 3, 4)]
    budget = max(steps[:2]) * 1.0001
    expected = next((count for count, step in enumerate(steps) if step > budget), 4)
    said: list[str] = []
    within = Removals(model, text, Cut(perplexity=budget, **PROTECT), say=said.append)
    assert within.choose(Way("angular_last"), scores).removed == sorted(order[:expected])
    assert all(f"budget {budget:.2f}" in line for line in said) and len(said) == min(expected + 1, 4)
    choice = within.choose(Way(selection="greedy"), scores)
    assert choice.removed == sorted(one.removed for one in choice.rounds)
    assert all(one.perplexity <= budget for one in choice.rounds)
    with pytest.raises(RegrowError, match="uniform spreads a given number of blocks"):
        within.choose(Way("uniform", "control"), scores)
    with pytest.raises(RegrowError, match=r"perplexity 1\.5: without any one block .* raise it"):
        Removals(model, text, Cut(perplexity=1.5, **PROTECT)).choose(Way(selection="greedy"), scores)


def test_what_is_known_is_not_computed_again(model, scores, tmp_path):
    """The same questions in the same folder: with the last round lost, as by a kill, that one alone is made again."""
    text, way, said = Text(SEQUENCES, 4), Way(selection="greedy"), []

    def asked(say):
        removals = Removals(model, text, Cut(remove=3, **PROTECT), held_out=ROWS, folder=tmp_path, say=say)
        removed = removals.choose(way, scores).removed
        return compare_ways(removals, scores, way, removed, shares=(0.5,), greedy=True)

    first = asked(said.append)
    assert sum("greedy round" in line for line in said) == 4, "the comparison goes on to the last free block"
    rounds, measured = read_json(tmp_path / "greedy.json"), read_json(tmp_path / "row-losses.json")
    write_json(tmp_path / "greedy.json", rounds[:-1])
    again: list[str] = []
    assert asked(again.append) == first
    assert [line for line in again if "greedy round" in line] == [line for line in said if "round 4" in line]
    assert read_json(tmp_path / "greedy.json") == rounds and read_json(tmp_path / "row-losses.json") == measured
    # A known perplexity is taken, not measured: another value in its place comes out.
    write_json(tmp_path / "row-losses.json", {**measured, "": {"calibration": [1.0, 3.0], "held_out": [0.0]}})
    assert asked(again.append)["dense"] == {"calibration": pytest.approx(math.exp(2.0)), "held_out": 1.0}


def test_maps_stand_in_for_what_goes(model, scores):
    removals = Removals(model, Text(SEQUENCES, 4), TWO, say=lambda line: None)
    maps, record = removals.replaced([2, 3])
    assert set(maps) == {2} and record["runs"] == [{"blocks": [2, 3], "folded_into": 1}]
    assert record["tokens"] == 12 * 24, "three of four sequences are fitted on"
    assert record["perplexity"]["with_map"] != record["perplexity"]["without_map"]
    found = compare_ways(removals, scores, Way("linear", "contiguous"), [2, 3], maps)
    mapped = {tuple(one["blocks"]): one["perplexity"] for one in found["sets"] if one["linear_map"]}
    assert mapped[2, 3] == record["perplexity"]["with_map"]
    with pytest.raises(RegrowError, match="every removed block lies at the start"):
        removals.replaced([0, 1])


def test_a_model_without_a_perplexity_compares_nothing(model, scores):
    broken = deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight.mul_(1e6)
    removals = Removals(broken, Text(SEQUENCES, 4), TWO, say=lambda line: None)
    with pytest.raises(RegrowError, match="the dense model's perplexity is not a finite number"):
        compare_ways(removals, scores, Way("tail", "control"), [3, 4])


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ({"selection": "gredy"}, "selection 'gredy': not known; known are one-shot, contiguous, greedy"),
        ({"by": "pll"}, "one-shot by 'pll': not known; known are ppl"),
        ({"by": "tial", "selection": "control"}, "control by 'tial': not known"),
    ],
)
def test_a_way_that_is_not_known_is_refused_when_it_is_made(way, said):
    with pytest.raises(RegrowError, match=said):
        Way(**way)


def test_what_is_no_text_of_ids_is_refused_when_it_is_given(model, tmp_path):
    for odd, found in (
        (SEQUENCES.tolist(), "list"),
        (SEQUENCES.float(), "of torch.float32"),
        (SEQUENCES[0], r"\(24,\)"),
    ):
        with pytest.raises(RegrowError, match=rf"^Text: sequences: ids \(sequences, tokens\) .* got .*{found}"):
            Text(odd, 1)
        with pytest.raises(RegrowError, match=rf"^held_out: ids .* got .*{found}"):
            Removals(model, Text(SEQUENCES, 4), TWO, held_out=odd)
    for micro_batch in (0, -1, 1.5, "2", None):
        with pytest.raises(RegrowError, match=f"micro_batch {micro_batch!r}: a whole number of sequences is wanted"):
            Text(SEQUENCES, micro_batch)
    with pytest.raises(RegrowError, match=r"folder '.*': a pathlib\.Path is wanted"):
        Removals(model, Text(SEQUENCES, 4), TWO, folder=str(tmp_path))
