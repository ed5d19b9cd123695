"""Tables and sentences of the comparison say what comparison.json holds, no more."""

import copy
import math
import statistics

import pytest

from pipeline.reporting import comparison as ways
from pipeline.reporting.comparison import best_control, overlap, perplexity_table, verdict, ways_of


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


def with_rows(record, held_out):
    """The record with the losses of four rows for each way at 9 blocks: `held_out` maps (by, selection) to them."""
    for one in record["sets"]:
        losses = held_out.get((one["by"], one["selection"])) if one["remove"] == 9 else None
        one["row_losses"] = {"held_out": losses, "calibration": None}
        if losses:
            one["perplexity"]["held_out"] = math.exp(sum(losses) / len(losses))
    return record


def test_rows_give_intervals_and_tell_ways_apart_or_not(record, prune):
    """On rows of which each is harder for one way by as much, that way is apart, however wide its own interval is."""
    rows = [3.0, 4.0, 5.0, 4.2]
    record = with_rows(
        record,
        {
            ("ppl", "greedy"): rows,
            ("ppl", "one-shot"): [loss + 0.1 + 0.001 * i for i, loss in enumerate(rows)],
            ("random", "control"): [5.0, 3.9, 4.6, 4.0],
            ("tail", "control"): [loss + 1 for loss in rows],
        },
    )
    known = ways_of(record, prune)
    first, second = verdict(record, known, prune)
    assert "by ppl, greedy. The next is" in first and ": 1.10 to 1.11 times that, at 95" in first, first
    assert "below tail (156.0), and not told apart from random (79.4" in second, second
    cells = {row["way"]["words"]: row["cells"][2] for row in perplexity_table(record, known)["rows"]}
    low, high = (math.exp(4.05 + sign * 3.182 * statistics.stdev(rows) / 2) for sign in (-1, 1))
    said = [float(end) for end in cells["ppl, greedy"]["spread"].split(" to ")]
    assert said == pytest.approx([low, high], rel=0.02), "Student's 97.5 % for 3 degrees of freedom is 3.182"
    assert cells["angular_last, contiguous"]["spread"] == "", "without losses of rows there is no interval"


def test_rows_that_do_not_tell_the_two_lowest_apart_are_said_so(record, prune):
    record = with_rows(record, {("ppl", "greedy"): [3.0, 4.0, 5.0], ("ppl", "one-shot"): [3.3, 3.9, 4.9]})
    assert "which these rows do not tell apart (" in verdict(record, ways_of(record, prune), prune)[0]


def test_records_with_gaps_give_empty_tables(prune):
    for gap in ({}, {"sets": []}, {"sets": [], "removals": None, "planned": None, "protected": None}):
        known = ways_of(gap, prune)
        assert known == [] and verdict(gap, known, prune) == []
        assert perplexity_table(gap, known)["columns"] == []
        assert overlap(gap, known, 30) is None
    assert ways.measured_on({}) == ""
