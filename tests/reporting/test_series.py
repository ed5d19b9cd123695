"""What is drawn of a run's lines: one line for what was asked alike, another with its own label for what was not."""

from __future__ import annotations

import math

import pytest

from pipeline.reporting.series import IN_TRAINING, perplexity_series, references, task_series
from pipeline.stages import exam


def text(value: float, rows: int = 8, **more):
    about = {"stderr": 2.0, "tokens": 63 * rows, "length": 64, "stride": 64, "bos": "document", "micro_batch": 8}
    return {"value": value, "rows": rows, "text": {"path": "p", "sha256": "c" * 64}, **about, **more}


def judged(step: int, texts=None, **tasks):
    return {"step": step, "tokens": 512 * step, "perplexity": texts or {}, "tasks": tasks}


def looped(step: int, value: float, rows: int = 4):
    more = {"held_out_perplexity": value, "held_out_stderr": 1.0, "rows": rows}
    return {"step": step, "tokens": 512 * step, **more}


def task(value: float, items: int = 100, **more):
    return {"metric": "acc", "value": value, "stderr": 0.05, "items": items, "shots": 0, "sha256": "a" * 64, **more}


def shown(series):
    return {one.label: [point[:2] for point in one.points] for one in series}


def test_the_rows_of_training_are_named_alike_by_whoever_judges():
    assert IN_TRAINING == exam.IN_TRAINING


def test_an_export_judged_on_the_rows_of_training_stands_on_its_line():
    lines = [looped(0, 90.0), looped(8, 60.0)]
    curve = [judged(16, {"held_out": text(50.0), IN_TRAINING: text(51.0, rows=4)})]
    held_out, others = perplexity_series(lines, curve)
    assert others == []
    assert shown(held_out) == {IN_TRAINING: [(0, 90.0), (4096, 60.0), (8192, 51.0)], "held_out": [(8192, 50.0)]}
    # Of four rows: Student's 3.18 standard errors of the loss, which are those of the perplexity over it.
    widths = [math.log(high / low) for _, _, (low, high) in held_out[0].points]
    assert widths == pytest.approx([2 * 3.18 * error for error in (1 / 90, 1 / 60, 2 / 51)], rel=0.01)


def test_the_same_rows_under_both_names_are_drawn_once():
    same = text(50.0)
    held_out, _ = perplexity_series([], [judged(8, {"held_out": same, IN_TRAINING: same})])
    assert shown(held_out) == {IN_TRAINING: [(4096, 50.0)]}


def test_another_number_of_rows_is_another_line_and_the_label_says_it():
    """A resume may take other rows for the loop; and another length, form or BOS policy is another figure."""
    curve = [
        judged(8, {"wiki": text(30.0)}),
        judged(16, {"wiki": text(29.0, micro_batch=4)}),
        judged(8, {"wiki": text(31.0, rows=9, bos="every")}),
        judged(8, {"ptb": text(80.0)}),
    ]
    held_out, others = perplexity_series([looped(8, 60.0), looped(16, 50.0, rows=64)], curve)
    assert list(shown(held_out)) == [f"{IN_TRAINING}, 4 rows", f"{IN_TRAINING}, 64 rows"]
    assert shown(others) == {
        "wiki, 8 rows, BOS document, 504 targets": [(4096, 30.0), (8192, 29.0)],
        "wiki, 9 rows, BOS every, 567 targets": [(4096, 31.0)],
        "ptb": [(4096, 80.0)],
    }


def test_tasks_between_steps_and_of_exports_make_one_line_where_items_are_the_same():
    lines = [judged(0, sums=task(0.1)), judged(16, sums=task(0.2))]
    curve = [judged(8, sums=task(0.15), piqa=task(0.5)), judged(16, sums=task(0.3))]
    curve += [judged(16, sums=task(0.9, items=200, sha256="b" * 64)), judged(24, sums=task(0.4))]
    assert shown(task_series(lines, curve)) == {
        "sums, 100 items, items aaaaaa": [(0, 10.0), (4096, 15.0), (8192, 30.0), (12288, 40.0)],
        "sums, 200 items, items bbbbbb": [(8192, 90.0)],
        "piqa": [(4096, 50.0)],
    }


def test_what_cannot_be_drawn_is_left_out():
    curve = [judged(8, {"wiki": text(math.inf)}, ppl=task(20.0, share=False), piqa=task(math.nan))]
    assert perplexity_series([looped(8, math.nan), {**looped(8, 1.0), "held_out_perplexity": None}], curve) == ([], [])
    assert task_series([], curve) == []


def test_references_stand_on_the_chart_where_they_were_measured_on_its_rows():
    models = {
        name: {"perplexity": {"held_out": text(value, rows=8)}} for name, value in (("dense", 14.0), ("pruned", 68))
    }
    whole = {"dense": 14.0, "pruned": 68}
    assert references(models, [looped(0, 68.0, rows=8)], [], 64) == (whole, "")
    assert references(models, [looped(0, 68.0, rows=8)], [], None) == (whole, ""), "an older record"
    found, why = references(models, [looped(0, 66.0, rows=16)], [], 64)
    assert found == {} and "other rows (8 of 64 tokens) than the curve (16 of 64)" in why
    assert references(models, [looped(0, 66.0, rows=8)], [], 128)[0] == {}, "rows of another length"
    judged_alike = [judged(8, {"held_out": text(40.0, rows=8)})]
    assert references(models, [looped(0, 66.0, rows=16)], judged_alike, 64) == (whole, "")
    assert references(models, [], [], 64) == ({}, "") == references({}, [looped(0, 1.0)], [], 64)
