"""Tables and sentences of the comparison say what comparison.json holds, no more."""

import copy
import math

import pytest

from pipeline.reporting import comparison as ways
from pipeline.reporting.comparison import best_control, greedy_table, overlap, perplexity_table, verdict, ways_of


@pytest.fixture
def record(compared):
    return compared["comparison"]


@pytest.fixture
def prune(compared):
    return compared["prune"]


def perplexity(record, by, selection, remove, text="held_out", linear_map=False):
    (one,) = (
        one
        for one in record["sets"]
        if (one["by"], one["selection"], one["remove"], one["linear_map"]) == (by, selection, remove, linear_map)
    )
    return one["perplexity"][text]


def test_ways_stand_once_with_controls_last(record, prune):
    known = ways_of(record, prune)
    assert [way["words"] for way in known] == [
        "ppl, one-shot",
        "ppl, greedy",
        "angular_last, contiguous",
        "angular_last, contiguous with a linear map",
        "tail",
        "random",
    ]
    assert [way["words"] for way in known if way["chosen"]] == ["ppl, one-shot"]


def test_table_has_every_number_and_the_best_of_each_column(record, prune):
    table = perplexity_table(record, ways_of(record, prune))
    assert [(c["count"], c["planned"]) for c in table["columns"]] == [(3, False), (9, True), (12, False)]
    assert table["texts"] == ["held-out", "calibration"], "held-out text stands first"
    rows = {row["way"]["words"]: row["cells"] for row in table["rows"]}
    assert rows["ppl, one-shot"][2]["text"] == "67.62"
    assert rows["random"][2]["text"] == f"{30 * math.exp(9 / 4):.1f}"
    assert rows["tail"][2]["text"] == "4.1e5"
    assert rows["tail"][4]["text"] == "not finite" and rows["tail"][4]["missing"]
    for column in range(6):
        best = [words for words, cells in rows.items() if cells[column]["best"]]
        assert best == ["ppl, greedy"], f"column {column}"


def test_without_held_out_text_there_is_one_column_for_each_count(record, prune):
    record["held_out"] = None
    for one in record["sets"]:
        one["perplexity"]["held_out"] = None
    table = perplexity_table(record, ways_of(record, prune))
    assert table["texts"] == ["calibration"] and len(table["rows"][0]["cells"]) == 3
    said = " ".join(verdict(record, ways_of(record, prune), prune))
    assert "the lowest calibration perplexity" in said and "Held-out text was not measured" in said


def test_verdict_names_the_lowest_and_places_the_choice_among_the_controls(record, prune):
    said = " ".join(verdict(record, ways_of(record, prune), prune))
    lowest = perplexity(record, "ppl", "greedy", 9)
    assert f"With 9 blocks removed, the lowest held-out perplexity before training is {lowest:.2f}, by ppl" in said
    assert "The next is 67.62, by ppl, one-shot." in said
    assert "This run chose by ppl, one-shot: 67.62, below every control: tail (4.1e5) and random (284.6)." in said


@pytest.mark.parametrize(
    ("tail", "random", "said"),
    [
        (20.0, 30.0, "67.62, above every control: tail (20.00) and random (30.00)."),
        (20.0, 90.0, "67.62, below random (90.00), and above tail (20.00)."),
        (67.62, 90.0, "67.62, below random (90.00), and level with tail (67.62)."),
        (None, None, "below every control: tail (not finite) and random (not finite)."),
    ],
)
def test_a_choice_that_is_not_below_the_controls_is_said_so(record, prune, tail, random, said):
    for one in record["sets"]:
        if one["selection"] == "control" and one["remove"] == 9:
            one["perplexity"]["held_out"] = {"tail": tail, "random": random}[one["by"]]
    assert said in verdict(record, ways_of(record, prune), prune)[-1]


def test_choices_that_were_not_compared_are_said_so(record, prune):
    def last(**changes):
        changed = prune | changes
        return verdict(record, ways_of(record, changed), changed)[-1]

    assert last(criterion=None, selection=None) == "This run's blocks were given."
    assert last(criterion="taylor").endswith("not among those compared.")
    assert "were chosen by the control random: 284.6" in last(criterion="random", selection="control")
    assert "67.62 without its linear maps, below" in last(linear={"runs": []})
    bare = copy.deepcopy(record) | {"sets": [one for one in record["sets"] if one["selection"] != "control"]}
    assert verdict(bare, ways_of(bare, prune), prune)[-1].endswith("; no control was measured there.")
    assert best_control(bare, prune) is None


def test_best_control_stands_beside_the_choice(record, prune):
    found = best_control(record, prune)
    assert (found["by"], found["text"], found["count"], found["chosen"]) == ("random", "held-out", 9, 67.62)
    assert found["value"] == perplexity(record, "random", "control", 9)
    assert best_control(None, prune) is None


def test_overlap_counts_shared_blocks(record, prune):
    found = overlap(record, ways_of(record, prune), 30)
    assert found["expected"] == 9 * 9 / 24 and found["free"] == 24
    assert [row["words"] for row in found["rows"]] == [
        "ppl, one-shot",
        "ppl, greedy",
        "angular_last, contiguous",
        "tail",
        "random",
    ], "a linear map changes no set"
    for row in found["rows"]:
        for other, cell in zip(found["rows"], row["cells"], strict=True):
            assert cell["shared"] == len(set(row["blocks"]) & set(other["blocks"]))
    assert found["rows"][0]["cells"][1]["shared"] == 8, "greedy took one other block"
    assert overlap(record | {"planned": 11}, ways_of(record, prune)[2:], 30) is None, "nobody has a set of 11"


def test_greedy_table_has_every_k_and_says_where_it_is_worse(record, prune):
    table = greedy_table(record, prune)
    assert [row["k"] for row in table["rows"]] == list(range(1, 13))
    assert [row["block"] for row in table["rows"]][:3] == ["9", "10", "13"], "the block that its round removed"
    row = table["rows"][8]
    assert [cell["text"] for cell in row["cells"]][:2] == [f"{perplexity(record, 'ppl', 'greedy', 9):.2f}", "67.62"]
    assert row["planned"] and row["cells"][0]["best"] and not row["cells"][1]["best"]
    assert "lower at k = 1\u20133, 5\u201312 (11 of 12) and higher at k = 4 (1 of 12)." in table["sentence"]
    assert "being lower there says little" in table["sentence"]


def test_greedy_without_a_comparison_or_held_out_text(record, prune):
    assert greedy_table({}, prune) is None
    prune["greedy"] = [{"removed": 7, "dense": 15.0, "perplexity": 16.04}, {"removed": 4, "dense": 16.0}]
    rows = greedy_table({}, prune)["rows"]
    assert [(row["k"], row["block"], row["cells"][0]["text"]) for row in rows] == [
        (1, 7, "16.04"),
        (2, 4, "not finite"),
    ]
    record["held_out"] = None
    for one in record["sets"]:
        one["perplexity"]["held_out"] = None
    assert greedy_table(record, prune)["sentence"].startswith("Held-out text was not measured.")


def test_records_with_gaps_give_empty_tables(prune):
    for gap in ({}, {"sets": []}, {"sets": [], "removals": None, "planned": None, "protected": None}):
        known = ways_of(gap, prune)
        assert known == [] and verdict(gap, known, prune) == []
        assert perplexity_table(gap, known)["columns"] == []
        assert overlap(gap, known, 30) is None
    assert ways.measured_on({}) == ""
