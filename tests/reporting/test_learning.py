"""The learning curve holds what the records say: every point, every reference line, each protocol by itself."""

import math

import pytest

from pipeline.errors import RegrowError
from pipeline.reporting import learning_curve
from pipeline.reporting.intervals import perplexity_interval


def line_of(figure, gid):
    return next((line for axes in figure.axes for line in axes.get_lines() if line.get_gid() == gid), None)


def test_learning_curve_draws_every_point_and_both_references(made_up):
    figure = learning_curve(made_up["metrics"], made_up["held_out"], {"dense": 14.03, "pruned": 68.6})
    loss, held_out = line_of(figure, "training-loss"), line_of(figure, "perplexity-held_out-in-training")
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


def test_judged_exports_are_drawn_with_their_errors_in_panels_of_their_own(made_up):
    about = {"rows": 8, "length": 64, "stride": 64, "bos": "none", "tokens": 504, "text": {"sha256": "c" * 64}}
    exports = [
        {
            "step": step,
            "tokens": 2048 * step,
            "perplexity": {"wiki": {"value": value, "stderr": 3.0, **about}, "held_out": {"value": value, **about}},
            "tasks": {"sums": {"value": 0.2, "stderr": 0.05}},
        }
        for step, value in ((20, 60.0), (40, 40.0))
    ]
    for narrow in (False, True):
        figure = learning_curve(made_up["metrics"], made_up["held_out"], {"dense": 14.0}, narrow, curve=exports)
        assert [axes.get_title("left") for axes in figure.axes] == [
            "training loss (nats per token)",
            "held-out perplexity",
            "perplexity of other texts",
            "tasks, right of a hundred",
        ]
        assert list(line_of(figure, "perplexity-wiki").get_ydata()) == [60.0, 40.0]
        assert list(line_of(figure, "perplexity-held_out").get_xdata()) == [40_960, 81_920]
        bars = figure.axes[2].containers[0].lines[2][0].get_segments()
        spans = [perplexity_interval(about | {"value": value, "stderr": 3.0}) for value in (60.0, 40.0)]
        assert [(float(low), float(high)) for (_, low), (_, high) in bars] == [pytest.approx(one) for one in spans]
        names = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
        assert names == ["held_out in training", "held_out"]
