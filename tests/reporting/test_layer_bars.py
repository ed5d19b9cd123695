"""The bars hold what the scores say: every block, its state, its interval, and the dense model's line."""

import itertools
import math

import pytest

from pipeline.errors import RegrowError
from pipeline.reporting import block_importance, draw_layer_bars
from pipeline.reporting.layer_bars import small_bars


def bars_of(figure):
    """State and height of each bar, by block."""
    found = {}
    for patch in figure.axes[0].patches:
        _, block, state = patch.get_gid().split("-")
        found[int(block)] = (state, patch)
    return found


def line_of(figure, gid):
    return next((line for line in figure.axes[0].get_lines() if line.get_gid() == gid), None)


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
    top = importance(made_up).axes[0].get_ylim()[1]
    for block, value in enumerate(made_up["scores"]["criteria"]["ppl"]["scores"]):
        patch = bars[block][1]
        end = pytest.approx(min(value - 14.21, top))
        assert patch.get_y() + patch.get_height() == end, f"bar {block} ends at what its absence adds"


def test_states_differ_without_colour(made_up):
    bars = bars_of(importance(made_up))
    looks = {}
    for state, patch in bars.values():
        red, green, blue, _ = patch.get_facecolor()
        looks[state] = (patch.get_hatch(), 0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert len({hatch for hatch, _ in looks.values()}) == 3, f"three hatchings: {looks}"
    greys = sorted(grey for _, grey in looks.values())
    assert min(b - a for a, b in itertools.pairwise(greys)) > 0.15, f"three greys apart: {looks}"


def test_protected_blocks_are_cut_off_above_those_that_may_go(made_up):
    axes = importance(made_up).axes[0]
    scores, protected = made_up["scores"]["criteria"]["ppl"]["scores"], made_up["prune"]["protected"]
    free = [value - 14.21 for block, value in enumerate(scores) if block not in protected]
    assert axes.get_yscale() == "linear" and max(free) < axes.get_ylim()[1] < 1.1 * max(free)
    cut = {round(text.xy[0]): text.get_text() for text in axes.texts}
    assert cut[0] == "\u2191 5,106", "a bar that is cut off says how high it is"
    assert set(cut) <= set(protected)


def test_a_free_block_far_above_its_like_is_cut_off_too(made_up):
    made_up["scores"]["criteria"]["ppl"]["scores"][11] = 900.0
    axes = importance(made_up).axes[0]
    assert axes.get_ylim()[1] < 100 and "\u2191 885.8" in [text.get_text() for text in axes.texts]


def test_without_dense_the_scale_follows_the_spread(made_up):
    entry = made_up["scores"]["criteria"]["ppl"]
    del entry["dense"]
    assert importance(made_up).axes[0].get_yscale() == "log", "5120 over 14 is more than twenty times"
    assert line_of(importance(made_up), "dense-reference") is None
    entry["scores"] = [15.0 + b for b in range(30)]
    axes = importance(made_up).axes[0]
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0, "bars on a linear axis stand on zero"


@pytest.mark.parametrize("value", [math.inf, math.nan, None])
def test_a_score_that_is_not_finite_is_marked(made_up, value):
    made_up["scores"]["criteria"]["ppl"]["scores"][0] = value
    axes = importance(made_up).axes[0]
    assert [text.get_text() for text in axes.texts if text.xy[0] == 0] == ["not finite"]
    assert len(axes.patches) == 30


def test_other_criteria_and_wrong_ones(made_up):
    made_up["scores"]["criteria"]["angular"] = {"scores": [0.1] * 30, "order": list(range(30))}
    assert "angular" in importance(made_up, criterion="angular").axes[0].get_ylabel()
    with pytest.raises(RegrowError, match=r"'taylor'.*angular, ppl"):
        importance(made_up, criterion="taylor")
    with pytest.raises(RegrowError, match=r"removed blocks \[30\] .* 30 blocks"):
        importance(made_up, removed=[30])


def spans_of(figure):
    x, y = (list(values) for values in line_of(figure, "intervals").get_data())
    return {int(x[i]): (y[i], y[i + 1]) for i in range(0, len(x), 3)}


def test_whiskers_span_the_intervals(made_up):
    entry = made_up["scores"]["criteria"]["ppl"]
    assert line_of(importance(made_up), "intervals") is None, "no interval, no whisker"
    entry["interval"] = [[value * 0.9, value * 1.2] for value in entry["scores"]]
    entry["interval"][5] = [None, 7.0]
    entry["scores"][6] = None
    figure = importance(made_up)
    spans, top = spans_of(figure), figure.axes[0].get_ylim()[1]
    added = {block: score - 14.21 for block, score in enumerate(entry["scores"]) if block not in (5, 6)}
    assert sorted(spans) == [block for block, value in added.items() if value <= top], (
        "of the bars that are drawn whole"
    )
    told = {round(text.xy[0]): text.get_text() for text in figure.axes[0].texts}
    assert told[0] == "\u2191 5,106 (4,594 to 6,130)", "a bar that is cut off says its interval"
    (beyond,) = [block for block in told if block in spans]
    assert spans[beyond] == (pytest.approx(entry["scores"][beyond] * 0.9 - 14.21), top)
    assert told[beyond] == f"\u2191 to {entry['scores'][beyond] * 1.2 - 14.21:.2f}", "a whisker that is says where to"
    assert spans[8] == pytest.approx((entry["scores"][8] * 0.9 - 14.21, entry["scores"][8] * 1.2 - 14.21))
    assert "95% interval" in [text.get_text() for text in figure.legends[0].get_texts()]
    del entry["dense"]
    assert spans_of(importance(made_up))[0] == pytest.approx((5120 * 0.9, 5120 * 1.2))


def test_whiskers_are_of_what_is_added_on_the_same_sequences(made_up):
    """Sequences that are hard with a block and without it widen no whisker."""
    entry = made_up["scores"]["criteria"]["ppl"]
    hard = [-1.0, -0.5, 0.0, 0.5, 1.0]
    entry["dense_sequence_losses"] = [math.log(14.21) + one for one in hard]
    entry["sequence_losses"] = [[math.log(score) + one for one in hard] for score in entry["scores"]]
    entry["sequence_losses"][8][0] += 0.1
    entry["sequence_losses"][8][1] -= 0.1
    entry["interval"] = [[value * 0.5, value * 2] for value in entry["scores"]]
    spans = spans_of(importance(made_up))
    assert spans[7] == pytest.approx((entry["scores"][7] - 14.21,) * 2)
    low, high = spans[8]
    assert low < entry["scores"][8] - 14.21 < high


def test_bars_from_the_output_of_score_blocks_alone(made_up):
    entry = made_up["scores"]["criteria"]["ppl"]
    figure = draw_layer_bars(entry, removed=[6, 9], title="all blocks")
    assert figure.axes[0].get_title("left") == "all blocks"
    assert [b for b, (state, _) in sorted(bars_of(figure).items()) if state == "removed"] == [6, 9]
    plain = draw_layer_bars({"scores": [0.1, -0.2, 0.3], "higher_is": "more important"})
    assert plain.axes[0].get_ylabel() == "score: higher is more important"
    assert plain.axes[0].get_ylim()[0] < -0.2, "a negative bar is inside"


def test_small_bars_are_one_outline_for_each_state(made_up):
    entry = made_up["scores"]["criteria"]["ppl"] | {"interval": [[1.0, 2.0]] * 30}
    entry["scores"][3] = math.inf
    patches = small_bars(entry, removed=[6, 9], protected=[0, 1]).axes[0].patches
    assert [patch.get_gid() for patch in patches] == ["bars-kept", "bars-removed", "bars-protected"]
    assert [len(patch.get_path().vertices) for patch in patches] == [4 * 26, 4 * 2, 4 * 2], "four corners for each bar"
    with pytest.raises(RegrowError, match="different models"):
        small_bars(entry, removed=[30])


def test_all_criteria_are_not_one():
    with pytest.raises(RegrowError, match=r'one criterion is wanted, scores\["ppl"\], got ppl, magnitude'):
        draw_layer_bars({"ppl": {}, "magnitude": {}})
