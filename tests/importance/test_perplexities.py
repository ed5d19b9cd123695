"""Perplexities without sets of blocks: the right ones, each measured once, and none that is not a number."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.importance.kept import Kept
from pipeline.importance.perplexities import Perplexities
from pipeline.importance.ppl import perplexity_without
from pipeline.world import World
from tests.families import VOCABULARY, build


@pytest.fixture
def model():
    return build("llama")


def some_ids(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, 16), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def texts() -> dict[str, torch.Tensor | None]:
    return {"calibration": some_ids(3, 0), "held_out": some_ids(2, 1)}


@pytest.fixture
def forwards(model) -> list[int]:
    """A number for each forward of the model, to be counted."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(1))
    return seen


def of(model, texts, kept=None) -> Perplexities:
    world = World()
    return Perplexities(model, texts, 2, kept=kept or Kept(None, world), world=world)


def test_each_text_has_the_perplexity_of_its_own(model, texts):
    measure = of(model, texts)
    for removed in ([], [2], [4, 1]):
        expected = {name: perplexity_without(model, ids.split(2), removed) for name, ids in texts.items()}
        assert measure(removed) == pytest.approx(expected, rel=1e-6), f"without {removed}"
    assert measure([])["calibration"] != measure([])["held_out"], "the texts are alike: nothing is shown"
    assert measure([2]) != measure([])
    assert of(model, {**texts, "held_out": None})([2]) == {**measure([2]), "held_out": None}


def test_a_set_is_measured_once_whatever_its_order_and_whoever_starts_again(model, texts, forwards, tmp_path):
    measure = of(model, texts, Kept(tmp_path, World()))
    first = measure([4, 1])
    count = len(forwards)
    assert count > 0 and measure([1, 4]) == first and len(forwards) == count, "the same set was measured twice"
    again = of(model, texts, Kept(tmp_path, World()))
    assert again([1, 4]) == first and len(forwards) == count, "what an earlier start measured was measured again"
    again([1])
    assert len(forwards) > count, "another set was not measured"


def test_with_maps_is_another_measurement(model, texts):
    measure, eye = of(model, texts), torch.eye(model.config.hidden_size)
    plain = measure([2, 3])
    assert measure([2, 3], {2: 0.5 * eye}) != pytest.approx(plain, rel=1e-3), "the maps were not put in"
    assert measure([2, 3]) == plain, "the maps stayed"
    assert of(model, texts)([2, 3], {2: eye}) == pytest.approx(plain, rel=1e-5), "an identity is nothing in their place"


def test_what_is_beyond_a_number_is_none(model, texts):
    assert of(model, texts).dense_is_finite() and of(model, {**texts, "held_out": None}).dense_is_finite()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    assert perplexity_without(model, texts["calibration"].split(2), []) == math.inf
    broken = of(model, texts)
    assert broken([]) == {"calibration": None, "held_out": None} and not broken.dense_is_finite()
