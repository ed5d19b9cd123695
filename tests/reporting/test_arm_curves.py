"""Charts of arms: what was asked alike shares one, over tokens and hours, and no name lies on another."""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from pipeline.reporting.arm_curves import arm_charts, draw_chart, line_style, short_name
from tests.reporting.arms import TEXT, arm, asked_on, line


def test_training_and_exports_that_asked_the_same_rows_share_a_line():
    judged = [line(60, "a", 23.0), line(60, "a", 99.0, rows=8), line(60, "a", 50.0, text={"sha256": "d" * 64})]
    charts = arm_charts([arm("a", inputs={"held_out": asked_on(16), "curve": judged}), arm("b")])
    by_label = {chart.label: chart.lines for chart in charts}
    shared = by_label[f"held-out text, 16 rows, text {TEXT[:6]}"][0]
    assert [point[2] for point in shared] == [70.0, 35.0, 23.0], "the export's own value stands"
    assert [point[2] for point in by_label[f"held-out text, 8 rows, text {TEXT[:6]}"][0]] == [99.0]
    assert f"held-out text, 16 rows, text {'d' * 6}" in by_label


def test_hours_are_those_of_all_processes_and_of_the_runs_before():
    chain = {"train": {"tokens": 122880, "processes": 4, "before": [{"tokens": 2048}]}}
    link = arm("link", hours_before=0.5, inputs={"held_out": asked_on(16), "cost": chain})
    (points,) = arm_charts([link])[0].lines.values()
    assert [point[0] for point in points] == [2048, 2048 + 30 * 2048, 2048 + 60 * 2048]
    # 3.4 s a step.
    assert [point[1] for point in points] == pytest.approx([0.5, 0.5 + 30 * 3.4 * 4 / 3600, 0.5 + 60 * 3.4 * 4 / 3600])
    unknown = arm("link", hours_before=None, inputs={"held_out": asked_on(16)})
    assert [point[1] for point in arm_charts([unknown])[0].lines[0]] == [None] * 3


def test_the_dense_model_is_drawn_where_it_was_judged_on_the_same_rows():
    entry = arm("a").records.models["dense"]["perplexity"]["held_out"]
    charts = arm_charts([arm("a", inputs={"held_out": [*asked_on(80), *asked_on(8)]}), arm("b")])
    assert {chart.label: chart.dense for chart in charts if "rows" in chart.label and "not" not in chart.label} == {
        "held-out text, 80 rows": entry["value"],
        "held-out text, 8 rows": None,
    }


@pytest.mark.parametrize("narrow", [False, True])
def test_no_name_lies_on_another_or_leaves_the_picture(narrow):
    """Fourteen arms that end at nearly one place, with the dense model."""
    factors = [1 + number / 1000 for number in range(13)] + [3.0]
    arms = [arm(f"run-of-a-long-name-{n}", inputs={"held_out": asked_on(80, f)}) for n, f in enumerate(factors)]
    chart = next(chart for chart in arm_charts(arms) if len(chart.lines) == 14)
    figure = draw_chart(chart, [one.name for one in arms], "hours", narrow)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        # What leads from a name to its line is no part of it.
        boxes = {text.get_text(): Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts}
        assert len(boxes) == 15
        for (one, a), (other, b) in combinations(boxes.items(), 2):
            assert not a.overlaps(b), f"{one} lies on {other}"
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes.values())


def test_an_arm_without_hours_is_drawn_over_tokens_alone():
    arms = [arm("a", inputs={"held_out": asked_on(16)}), arm("b", hours_before=None, inputs={"held_out": asked_on(16)})]
    tokens, hours = draw_chart(arm_charts(arms)[0], ["a", "b"], "GPU-hours").axes
    assert [len(axes.texts) for axes in (tokens, hours)] == [2, 1] and hours.get_xlabel() == "GPU-hours"
    neither = draw_chart(arm_charts(arms[1:])[0], ["b"], "GPU-hours")
    assert len(neither.axes) == 1


def test_every_arm_has_a_style_of_its_own_and_a_name_that_fits():
    styles = [repr(line_style(number)) for number in range(18)]
    assert len(set(styles)) == 18
    assert short_name("cut45-two-steps-2") == "cut45-two-steps-2"
    assert short_name("a-name-that-is-much-too-long-1") == "a-name-tha\u2026-too-long-1"
