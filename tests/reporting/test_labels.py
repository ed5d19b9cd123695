"""Labels of lines close together stand apart, and lie on no other line."""

import itertools

import pytest

from pipeline.reporting.drawing import WIDE, canvas, log_scale
from pipeline.reporting.labels import Label, sides


def axes_between(low, high, log):
    _, (axes,) = canvas(1, 1, (WIDE, 3.1))
    log_scale(axes, low, high) if log else axes.set_ylim(low, high)
    return axes


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(("dense", "pruned"), [(20.0, 22.0), (22.0, 20.0)])
def test_of_two_lines_close_together_the_upper_has_its_label_above_and_the_lower_below(log, dense, pruned):
    above = sides(axes_between(10, 80, log), [Label(dense), Label(pruned)])
    assert above == [dense > pruned, pruned > dense]


def test_lines_far_apart_have_their_labels_above():
    assert sides(axes_between(10, 80, False), [Label(20.0), Label(50.0)]) == [True, True]


def test_a_label_at_the_top_goes_below():
    assert sides(axes_between(10, 80, False), [Label(79.5)]) == [False]


def test_many_labels_end():
    assert sides(axes_between(10, 80, False), [Label(40.0)] * 9) == [True] * 9


def test_three_labels_do_not_cover_each_other_where_they_need_not():
    axes = axes_between(0, 100, False)
    labels = [Label(50.0), Label(54.0), Label(70.0)]
    spans = [
        label.span(3.1 * 72 * 0.55 * label.value / 100, above)
        for label, above in zip(labels, sides(axes, labels), strict=True)
    ]
    for (low, high), (other_low, other_high) in itertools.combinations(spans, 2):
        assert high <= other_low or other_high <= low, spans
