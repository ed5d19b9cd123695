"""A page of records with gaps: what is missing is said, and nothing is made up for it."""

import math

import pytest

from tests.reporting.reading import render


def test_criteria_leave_no_trace_where_nothing_was_recorded(worded, tmp_path):
    old = {key: worded["prune"][key] for key in ("removed", "kept", "protected", "criterion", "parameters")}
    _, page = render(worded | {"prune": old}, tmp_path)
    for absent in ("How else", "within noise", "heat", "Linear maps", "Greedy", "control", "null", "None"):
        assert absent not in page.words, absent


@pytest.mark.parametrize(
    "gap",
    [
        {},
        {"sets": []},
        {"planned": None, "removals": None, "shares": None},
        {"protected": None, "calibration": None, "held_out": None, "dense": None},
        {"planned": 10},
    ],
)
def test_a_partial_comparison_does_not_end_the_report(worded, compared, tmp_path, gap):
    comparison = compared["comparison"] | gap if gap else {}
    comparison["sets"] = [one | {"perplexity": {"calibration": None}} for one in comparison.get("sets") or ()]
    _, page = render(worded | {"comparison": comparison}, tmp_path)
    assert page.faults == []
    assert "the lowest" not in page.words, "nothing finite was measured"


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ({}, "No training steps were recorded."),
        ({}, "No held-out evaluation was recorded during training."),
        ({"scores": None}, "No block scores were recorded"),
        ({"results": None}, "Not evaluated in this run: dense, pruned, regrown."),
        ({"results": {"models": {}}}, "Held-out perplexity was not measured."),
        ({"cost": None}, "No training was recorded."),
        ({"config_yaml": ""}, "The configuration was not recorded."),
        ({"provenance": None}, "Text not recorded"),
    ],
)
def test_missing_parts_are_said(worded, whole_words, tmp_path, gap, said):
    assert said not in whole_words, "the whole page does not say so"
    _, page = render(worded | gap, tmp_path)
    assert page.faults == []
    assert said in page.words, f"the page says: {said}"


def test_each_half_of_the_curve_may_be_missing(made_up, worded, tmp_path):
    # Metrics are drawn as the curve of the loss, and as those of the steps.
    for kept, missing, drawn in (("metrics", "No held-out evaluation", 4), ("held_out", "No training steps", 2)):
        _, page = render(worded | {kept: made_up[kept][:3]}, tmp_path)
        said = [words for words in ("No held-out evaluation", "No training steps") if words in page.words]
        assert said == [missing] and page.tags.count("svg") == drawn, f"{kept} alone is drawn"


def test_a_curve_that_begins_at_the_healed_model_says_so_and_is_not_called_inexact(made_up, worded, tmp_path):
    start = [{**line, "held_out_perplexity": 40.0} for line in made_up["held_out"][:1]]
    train = worded["cost"]["train"]
    for healed, said in ((False, "read the dashed lines as a guide"), (True, "began with the pruned model healed")):
        cost = worded["cost"] | {"train": train | {"healed": healed}}
        _, page = render(worded | {"held_out": start, "cost": cost}, tmp_path)
        words = ("read the dashed lines as a guide", "began with the pruned model healed")
        assert [one for one in words if one in page.words] == [said]


def test_missing_regrown_results_are_said(worded, tmp_path):
    del worded["results"]["models"]["regrown"]
    _, page = render(worded, tmp_path)
    assert "Not evaluated in this run: regrown." in page.words
    assert "68.60 (64.1 to 73.4) after pruning; the regrown model was not measured" in page.words
    assert page.words.count("not generated") == 2, "both samples lack the regrown text"


def test_the_least_that_can_be_reported(made_up, tmp_path):
    _, page = render({"name": "bare", "prune": made_up["prune"]}, tmp_path)
    assert page.faults == []
    assert "svg" not in page.tags
    assert "9 of 30 blocks removed" in page.words


def test_values_that_are_not_finite_do_not_end_the_report(made_up, tmp_path):
    made_up["results"]["models"]["pruned"]["perplexity"]["held_out"]["value"] = math.inf
    made_up["held_out"][0]["held_out_perplexity"] = math.inf
    made_up["metrics"][3]["loss"] = math.nan
    _, page = render(made_up | {"scores": None}, tmp_path)
    assert page.faults == []
    assert "from not finite to 22.10" in page.words


def test_blocks_given_by_hand_are_not_ascribed_to_the_scores(made_up, tmp_path):
    made_up["prune"]["criterion"] = None
    page = render(made_up | {"metrics": [], "held_out": []}, tmp_path)[1]
    assert "The blocks were not chosen by these scores." in page.words


def test_greedy_rounds_stand_on_the_page_without_a_comparison(made_up, tmp_path):
    made_up["prune"] = {
        **made_up["prune"],
        "selection": "greedy",
        "greedy": [{"removed": 7, "dense": 17.5, "perplexity": 18.25}],
    }
    _, page = render(made_up, tmp_path)
    assert "Rounds of the greedy selection" in page.words and "18.25" in page.words


def test_one_size_is_a_table_and_no_picture(worded, compared, tmp_path):
    record = compared["comparison"]
    one = {**record, "removals": [9], "shares": [0.3], "sets": [each for each in record["sets"] if each["remove"] == 9]}
    html, page = render(worded | {"comparison": one}, tmp_path)
    assert "Perplexity after pruning, without training" in page.words
    assert "after-pruning-0" not in html and not list(tmp_path.glob("perplexity-after-pruning-*.png"))
