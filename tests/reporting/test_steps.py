"""The curves of the steps hold what metrics.jsonl says, and nothing that was not measured."""

import pytest

from pipeline.reporting.steps import step_curves, step_drawings, step_measures


def line_of(figure, key):
    return next(line for axes in figure.axes for line in axes.get_lines() if line.get_gid() == f"steps-{key}")


def test_a_panel_for_each_measure_that_is_known(made_up):
    assert [one.key for one in step_measures(made_up["metrics"])] == ["learning_rate", "grad_norm", "tokens_per_second"]
    on_gpu = [{**line, "mfu": 0.4, "memory": 3 * 2**30} for line in made_up["metrics"]]
    for narrow in (False, True):
        figure = step_curves(on_gpu, narrow)
        assert len(figure.axes) == 5
        assert set(line_of(figure, "mfu").get_ydata()) == {40.0} and set(line_of(figure, "memory").get_ydata()) == {3.0}
        assert list(line_of(figure, "learning_rate").get_xdata()) == list(range(1, 61))


def test_a_spike_of_the_norm_does_not_vanish_in_a_long_run():
    metrics = [{"step": step, "grad_norm": 1.0, "tokens_per_second": 10.0 + step % 2} for step in range(1, 3001)]
    metrics[1500]["grad_norm"] = 90.0
    figure = step_curves(metrics)
    norms = line_of(figure, "grad_norm").get_ydata()
    assert len(norms) == 300 and max(norms) == 90.0
    assert set(line_of(figure, "tokens_per_second").get_ydata()) == {10.5}, "each point is the mean of its group"
    assert figure.axes[0].get_title("left").endswith("largest of 10")


@pytest.mark.parametrize("metrics", [[], [{"step": 1, "grad_norm": 1.0}], [{"step": 1}, {"step": 2}]])
def test_nothing_to_draw_is_no_picture(metrics, tmp_path):
    assert step_drawings(metrics, tmp_path) is None and not list(tmp_path.iterdir())
