"""Which micro-batch is taken: by the memory plan, by trying, and kept."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig

from pipeline.errors import RegrowError
from pipeline.model.costs import Trained
from pipeline.training.fitting import SHARE, Fit, ToFit, first_that_fits, keep_fit, kept_fit, plain_fit

VICUNA = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000)


def wanted(parameters: float, blocks: int, processes: int = 8, batch: int = 512, **changes: object) -> ToFit:
    trained = Trained(int(parameters), 202383360, VICUNA, blocks=blocks)
    return ToFit(trained, 1, processes, 2048, batch, **changes)


def test_the_best_comes_first_and_all_are_within_the_share():
    asked = wanted(1.5e9, 6)
    fits = list(asked.fits(80e9))
    # 6 blocks leave room for 16 rows, beyond which nothing is gained; then fewer, and only then is anything recomputed.
    assert fits[:5] == [Fit(rows, "none") for rows in (16, 8, 4, 2, 1)]
    assert fits[5] == Fit(16, "selective") and fits[-1] == Fit(1, "full")
    assert all(asked.needs(fit) <= SHARE * 80e9 for fit in fits)


def test_more_is_computed_again_only_where_nothing_fits_else():
    large = wanted(5.5e9, 26)
    needs = {kind: large.needs(Fit(1, kind)) for kind in ("none", "selective", "full")}
    assert needs["none"] > needs["selective"] > needs["full"]
    capacity = needs["selective"] / SHARE
    assert next(large.fits(capacity)) == Fit(1, "selective")
    assert next(large.fits(needs["full"] / SHARE)) == Fit(1, "full")
    assert list(large.fits(0.99 * needs["full"] / SHARE)) == []
    asked = wanted(1.5e9, 6, gradient_checkpointing="selective")
    assert {fit.gradient_checkpointing for fit in asked.fits(80e9)} == {"selective", "full"}, "less than was asked for"


@pytest.mark.parametrize(
    ("batch", "processes", "rows"), [(512, 8, [16, 8, 4, 2, 1]), (24, 8, [3, 1]), (36, 2, [9, 6, 3, 2, 1]), (7, 7, [1])]
)
def test_rows_divide_those_of_a_process(batch, processes, rows):
    asked = wanted(1.5e9, 6, processes=processes, batch=batch)
    assert asked.divisors() == rows
    assert plain_fit(asked).micro_batch == max(count for count in rows if count <= 2)


def test_rows_that_do_not_divide_among_the_processes_are_refused():
    with pytest.raises(RegrowError, match="512 rows does not divide among 7 processes"):
        next(wanted(1.5e9, 6, processes=7).fits(80e9))


def test_what_does_not_fit_gives_way_to_the_next():
    tried, said = [], []

    def attempt(fit: Fit) -> None:
        tried.append(fit)
        if fit.micro_batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    fits = [Fit(8, "none"), Fit(4, "none"), Fit(2, "none")]
    assert first_that_fits(fits, attempt, said.append, 80e9) == Fit(4, "none")
    assert tried == fits[:2] and said == ["micro-batch 8, recomputing none: does not fit"]
    with pytest.raises(RegrowError, match=r"not one row fits into 80.00 GB.*raise train\.zero_stage"):
        first_that_fits([Fit(8, "full")], attempt, said.append, 80e9)
    with pytest.raises(ValueError, match="another"):
        first_that_fits(fits, lambda fit: (_ for _ in ()).throw(ValueError("another")), said.append, 80e9)


ASKED = {"processes": 8, "zero_stage": 1}


def test_a_fit_is_kept_for_what_it_was_asked_for(tmp_path):
    assert kept_fit(tmp_path, ASKED) is None
    keep_fit(tmp_path, Fit(4, "selective"), ASKED)
    assert kept_fit(tmp_path, ASKED) == Fit(4, "selective")
    assert kept_fit(tmp_path, {**ASKED, "zero_stage": 3}) is None, "found for another stage"


@pytest.mark.parametrize(
    "written",
    [
        {"gradient_checkpointing": "none", "asked": ASKED},
        {"micro_batch": "2", "gradient_checkpointing": "none", "asked": ASKED},
        {"micro_batch": 0, "gradient_checkpointing": "none", "asked": ASKED},
        {"micro_batch": 2, "gradient_checkpointing": "some", "asked": ASKED},
        {"micro_batch": 2, "gradient_checkpointing": "none"},
        [1],
    ],
)
def test_a_fit_that_was_edited_is_refused_by_its_file(tmp_path, written):
    (tmp_path / "fit.json").write_text(json.dumps(written))
    with pytest.raises(RegrowError, match=r"fit\.json: not as a run writes it; delete it"):
        kept_fit(tmp_path, ASKED)
