"""Labels of lines close together stand apart, and lie on no other line."""

import itertools

import pytest

from pipeline.reporting.drawing import WIDE, canvas, log_scale
from pipeline.reporting.labels import Label, sides, spread


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


def test_a_label_that_a_line_comes_down_to_goes_below_where_there_is_room():
    label = Label(40.0, covered=4.0)
    assert sides(axes_between(10, 80, False), [label]) == [False]
    assert sides(axes_between(39, 80, False), [label]) == [True], "below it would leave the axes"


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


def test_labels_are_spread_in_their_order_and_moved_no_more_than_needed():
    assert spread([50, 10, 90], 10, 0, 100) == [50, 10, 90]
    assert spread([50, 50, 90], 10, 0, 100) == [45, 55, 90]
    assert spread([52, 50, 51, 12], 10, 0, 100) == [61, 41, 51, 12]
    assert spread([99, 100, 1], 10, 0, 100) == [90, 100, 1]
    assert spread([0, 0, 0], 10, 0, 100) == [0, 10, 20]
    assert spread([5, 5, 5], 10, 0, 10) == [0, 10, 20], "there is no room: they stand apart all the same"
    assert spread([], 10, 0, 100) == []
