"""The lines of ways to choose blocks hold what the records say: every point, every reference."""

from pipeline.reporting import perplexity_lines


def line_of(figure, gid):
    return next((line for axes in figure.axes for line in axes.get_lines() if line.get_gid() == gid), None)


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
