"""Figures that are kept: taken as they are for the same, and made anew for anything else."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.evaluation.figures import Figures, hash_rows
from pipeline.evaluation.windows import TextRows
from pipeline.world import ALONE, World


def of(folder, fixed, made, world=ALONE):
    """(what came out, how often it was made)"""
    made_times = []

    def make():
        made_times.append(1)
        return made

    return Figures(folder, world).of(fixed, make), len(made_times)


def test_what_was_made_is_the_same_to_the_last_digit_and_not_made_again(tmp_path):
    made = {"value": 1 / 3, "loss": math.pi * 1e-300, "tokens": 7, "stderr": None, "worst": math.inf}
    assert of(tmp_path, {"model": "a"}, made) == (made, 1)
    assert of(tmp_path, {"model": "a"}, "another") == (made, 0)


@pytest.mark.parametrize("damage", ["", "{", "\ufeff{}"])
def test_what_is_damaged_is_made_anew(tmp_path, damage):
    of(tmp_path, {"model": "a"}, 1)
    (path,) = tmp_path.iterdir()
    path.write_text(damage)
    assert of(tmp_path, {"model": "a"}, 2) == (2, 1) and of(tmp_path, {"model": "a"}, 3) == (2, 0)


def test_another_model_or_number_of_threads_is_another_figure(tmp_path):
    of(tmp_path, {"model": "a"}, 1)
    assert of(tmp_path, {"model": "b"}, 2) == (2, 1)
    other = World()
    other.threads = ALONE.threads + 1
    assert of(tmp_path, {"model": "a"}, 3, other) == (3, 1)


def test_rows_are_known_by_their_ids_their_shape_and_where_targets_begin():
    rows, begin = torch.arange(12), torch.ones(3, dtype=torch.int64)
    texts = [
        TextRows(rows.view(3, 4), begin, {"bos": "none"}),
        TextRows(rows.view(4, 3), torch.ones(4, dtype=torch.int64), {}),
        TextRows(rows.view(3, 4).flip(0), begin, {}),
        TextRows(rows.view(3, 4), begin + 1, {}),
    ]
    assert len({hash_rows(text) for text in texts}) == 4
    assert hash_rows(texts[0]) == hash_rows(TextRows(rows.view(3, 4).clone(), begin, {})), "what is said counts"
