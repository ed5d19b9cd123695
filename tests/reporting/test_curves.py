"""The curves hold what the records say: every point, every reference line."""

import math

import pytest

from pipeline.errors import RegrowError
from pipeline.reporting import learning_curve, perplexity_lines


def line_of(figure, gid):
    return next((line for axes in figure.axes for line in axes.get_lines() if line.get_gid() == gid), None)


def test_learning_curve_draws_every_point_and_both_references(made_up):
    figure = learning_curve(made_up["metrics"], made_up["held_out"], {"dense": 14.03, "pruned": 68.6})
    loss, held_out = line_of(figure, "training-loss"), line_of(figure, "held-out-perplexity")
    assert list(loss.get_xdata()) == [line["tokens"] for line in made_up["metrics"]]
    assert list(held_out.get_ydata()) == [line["held_out_perplexity"] for line in made_up["held_out"]]
    for name, value in (("dense", 14.03), ("pruned", 68.6)):
        line = line_of(figure, f"reference-{name}")
        assert line.get_ydata()[0] == value
        assert line.get_linestyle() == "--", f"the reference {name} is dashed"
    assert "22.10" in [text.get_text() for text in figure.axes[1].texts], "the last value is written out"


def test_learning_curve_without_a_half(made_up):
    only_loss = learning_curve(made_up["metrics"], [], {"dense": 14.03, "pruned": None})
    assert [axes.get_title("left") for axes in only_loss.axes] == ["training loss (nats per token)"]
    only_held_out = learning_curve([], made_up["held_out"][:1], {})
    assert [axes.get_title("left") for axes in only_held_out.axes] == ["held-out perplexity"]
    with pytest.raises(RegrowError, match="neither"):
        learning_curve([{"tokens": 1, "loss": math.nan}], [], {})


def test_a_long_run_is_averaged_without_losing_its_mean():
    metrics = [{"tokens": 10 * step, "loss": 3.0 + (step % 2)} for step in range(1, 16_001)]
    loss = line_of(learning_curve(metrics, [], {}), "training-loss")
    assert len(loss.get_xdata()) == 800
    assert loss.get_xdata()[-1] == 160_000, "the curve reaches the last token"
    assert set(loss.get_ydata()) == {3.5}, "each point is the mean of its group"


def way(by, selection, points, **more):
    return {"by": by, "selection": selection, "linear_map": False, "chosen": False, "points": points} | more


def test_perplexity_lines_hold_every_point_and_mark_the_lost_ones():
    ways = [
        way("ppl", "one-shot", [(3, 24.0), (9, 68.0)], chosen=True),
        way("ppl", "greedy", [(3, 23.0), (9, 60.0)]),
        way("angular_last", "contiguous", [(3, 40.0), (9, None)], linear_map=True),
        way("tail", "control", [(3, 900.0), (9, 2.5e6)]),
    ]
    single, windows = perplexity_lines(ways, text="held-out", dense=17.7)
    assert list(line_of(single, "way-ppl-one-shot").get_ydata()) == [24.0, 68.0]
    assert list(line_of(single, "way-ppl-greedy").get_xdata()) == [3, 9]
    assert line_of(single, "way-ppl-one-shot").get_linewidth() > line_of(single, "way-ppl-greedy").get_linewidth()
    assert line_of(windows, "way-angular_last-contiguous-linear") and not line_of(windows, "way-ppl-greedy")
    for figure in (single, windows):
        axes = figure.axes[0]
        assert axes.get_yscale() == "log"
        assert line_of(figure, "way-tail-control").get_ydata()[1] == 2.5e6, "controls stand in both"
        assert line_of(figure, "dense-reference").get_ydata()[0] == 17.7
        assert axes.get_ylim()[0] < 17.7 and axes.get_ylim()[1] > 2.5e6
    carets = [line for line in windows.axes[0].get_lines() if line.get_marker() == "^" and len(line.get_xdata()) == 1]
    assert [list(line.get_xdata()) for line in carets] == [[9]], "the lost point stands at the top"


def test_perplexity_lines_without_anything_finite():
    assert perplexity_lines([], text="held-out") == []
    assert perplexity_lines([way("ppl", "one-shot", [(3, None)])], text="held-out") == []
    (alone,) = perplexity_lines([way("tail", "control", [(3, 90.0)])], text="held-out")
    assert list(line_of(alone, "way-tail-control").get_ydata()) == [90.0], "controls alone get a drawing too"


def test_tasks_are_drawn_with_their_errors_and_the_hours_above(made_up):
    asked = [
        {"step": step, "tokens": 2048 * step, "tasks": {"sums": {"value": value, "stderr": 0.03}}}
        for step, value in ((0, 0.04), (30, 0.10), (60, 0.25))
    ]
    metrics = [{**line, "seconds": 3.0} for line in made_up["metrics"]]
    figure = learning_curve(metrics, made_up["held_out"], {}, tasks=asked, processes=8)
    line = line_of(figure, "task-sums")
    assert list(line.get_xdata()) == [0, 61_440, 122_880] and list(line.get_ydata()) == [4.0, 10.0, 25.0]
    bars = figure.axes[2].containers[0].lines[2][0].get_segments()
    assert [float(top - bottom) for (_, bottom), (_, top) in bars] == pytest.approx([6.0] * 3), "not one error each way"
    (above,) = figure.axes[0].child_axes
    to_hours, _ = above._functions
    assert to_hours(metrics[-1]["tokens"]) == pytest.approx(3.0 * len(metrics) * 8 / 3600)
    only = learning_curve([], [], {}, tasks=asked)
    assert [axes.get_title("left") for axes in only.axes] == ["tasks, right of a hundred"]
    assert not only.axes[0].child_axes, "hours of nothing are shown"
