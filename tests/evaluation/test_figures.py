"""Figures that are kept: taken as they are for the same, and made anew for anything else."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.evaluation.figures import Figures, computed_by, hash_rows
from pipeline.evaluation.windows import TextRows
from pipeline.world import ALONE


def of(folder, fixed, made):
    """(what came out, how often it was made)"""
    made_times = []

    def make():
        made_times.append(1)
        return made

    return Figures(folder, ALONE).of(fixed, make), len(made_times)


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


def test_another_model_or_number_of_threads_is_another_figure(tmp_path, monkeypatch):
    of(tmp_path, {"model": "a"}, 1)
    assert of(tmp_path, {"model": "b"}, 2) == (2, 1)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert of(tmp_path, {"model": "a"}, 3) == (3, 1)


def test_what_computes_is_known_by_the_gpus_name_and_the_versions(monkeypatch):
    alone = computed_by(torch.device("cpu"))
    assert alone["device"] == "cpu" and alone["threads"] == torch.get_num_threads()
    assert set(alone["versions"]) == {"torch", "transformers"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert computed_by(torch.device("cuda", 1)) == alone | {"device": "GPU 1", "threads": None}


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
