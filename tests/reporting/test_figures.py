"""The figures hold what the records say: every bar, every mark, every reference line."""

import itertools
import math
import re

import matplotlib
import pytest
from matplotlib import pyplot

from pipeline.reporting import block_importance, figures, learning_curve
from pipeline.run import RegrowError


def bars_of(figure):
    """State and height of each bar, by block."""
    found = {}
    for patch in figure.axes[0].patches:
        _, block, state = patch.get_gid().split("-")
        found[int(block)] = (state, patch)
    return found


def line_of(figure, gid):
    return next((line for axes in figure.axes for line in axes.get_lines() if line.get_gid() == gid), None)


def importance(inputs, **changes):
    arguments = {
        "scores": inputs["scores"],
        "removed": inputs["prune"]["removed"],
        "protected": inputs["prune"]["protected"],
        "criterion": "ppl",
    }
    return block_importance(**arguments | changes)


def test_one_bar_per_block_with_its_state(made_up):
    bars = bars_of(importance(made_up))
    assert sorted(bars) == list(range(30)), "one bar for each of the 30 blocks"
    for state, blocks in (("removed", made_up["prune"]["removed"]), ("protected", made_up["prune"]["protected"])):
        assert [b for b in sorted(bars) if bars[b][0] == state] == blocks, f"{state} blocks are marked"
    for block, value in enumerate(made_up["scores"]["criteria"]["ppl"]["scores"]):
        patch = bars[block][1]
        assert patch.get_y() + patch.get_height() == pytest.approx(value), f"bar {block} ends at its perplexity"


def test_states_differ_without_colour(made_up):
    bars = bars_of(importance(made_up))
    looks = {}
    for state, patch in bars.values():
        red, green, blue, _ = patch.get_facecolor()
        looks[state] = (patch.get_hatch(), 0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert len({hatch for hatch, _ in looks.values()}) == 3, f"three hatchings: {looks}"
    greys = sorted(grey for _, grey in looks.values())
    assert min(b - a for a, b in itertools.pairwise(greys)) > 0.15, f"three greys apart: {looks}"


def test_scale_follows_the_spread(made_up):
    entry = made_up["scores"]["criteria"]["ppl"]
    assert importance(made_up).axes[0].get_yscale() == "log", "5120 over 14 is more than twenty times"
    entry["scores"] = [15.0 + b for b in range(30)]
    axes = importance(made_up).axes[0]
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0, "bars on a linear axis stand on zero"


def test_dense_reference_stands_at_its_value(made_up):
    assert line_of(importance(made_up), "dense-reference").get_ydata()[0] == 14.21
    del made_up["scores"]["criteria"]["ppl"]["dense"]
    assert line_of(importance(made_up), "dense-reference") is None


@pytest.mark.parametrize("value", [math.inf, math.nan, None])
def test_a_score_that_is_not_finite_is_marked(made_up, value):
    made_up["scores"]["criteria"]["ppl"]["scores"][0] = value
    axes = importance(made_up).axes[0]
    assert [text.get_text() for text in axes.texts] == ["not finite"]
    assert len(axes.patches) == 30


def test_other_criteria_and_wrong_ones(made_up):
    made_up["scores"]["criteria"]["angular"] = {"scores": [0.1] * 30, "order": list(range(30))}
    assert "angular" in importance(made_up, criterion="angular").axes[0].get_ylabel()
    with pytest.raises(RegrowError, match=r"'taylor'.*angular, ppl"):
        importance(made_up, criterion="taylor")
    with pytest.raises(RegrowError, match=r"removed blocks \[30\] .* 30 blocks"):
        importance(made_up, removed=[30])


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


def test_drawing_leaves_matplotlib_as_it_was(made_up, tmp_path):
    before = dict(matplotlib.rcParams)
    figure = importance(made_up)
    figures.to_svg(figure, "x", "label")
    figures.save_png(figure, tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == [], "no figure is left in pyplot's global list"


def test_svg_is_inline_themed_and_repeatable(made_up):
    one, two = (figures.to_svg(importance(made_up), prefix, 'a "label" & more') for prefix in ("one", "two"))
    assert one == figures.to_svg(importance(made_up), "one", 'a "label" & more'), "the same drawing, the same bytes"
    assert one.startswith("<svg viewBox=") and one.endswith("</svg>")
    assert 'aria-label="a &quot;label&quot; &amp; more"' in one
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", one), "every colour is a variable of the page"
    assert "http" not in one and "xlink" not in one
    assert len(re.findall(r'id="one-block-\d+-removed"', one)) == 9
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (one, two)]
    assert len(set(ids[0] + ids[1])) == len(ids[0]) + len(ids[1]), "ids are unique over two drawings on one page"
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', one))
    assert used and used <= set(ids[0]), f"every reference has its target: {used - set(ids[0])}"
    assert re.search(r"<text[^>]*>block of the dense model</text>", one), "text stays text"
    defined = set(re.findall(r"var\(--fig-([\w-]+)\)", one))
    assert defined <= set(figures.COLOURS), f"known colours only: {defined}"
