"""What the page says of certainty and of the other criteria is what the records hold."""

import pytest

from pipeline.reporting import criteria


def words(found):
    return " ".join(found["sentences"]).replace("\u202f", " ")


def test_noise_is_said_in_plain_words(compared):
    found = criteria.certainty(compared["scores"], compared["prune"], "ppl")
    said = words(found)
    assert found["noisy"] is True
    for expected in (
        "Part of this choice is within noise: 10 calibration sequences do not tell removed blocks 6, 23, 24",
        "remove exactly this set in 41 % of the draws; on average 93 % of the set stays.",
        "24 from 8; 24 from 14; 6 from 8; and 1 more",
        "Removed in some draws and kept in others: 8 (20 %).",
        "About 8,500 sequences would settle the hardest pair, by order of magnitude.",
        "In the whole order by ppl, 4 of 29 neighbours are not told apart at 95 %",
    ):
        assert expected in said, f"missing: {expected}\nin: {said}"


def test_a_settled_choice_and_an_endless_one(compared):
    prune = compared["prune"]
    prune["stability"] |= {"unsettled": [], "settled": True, "same_set": 0.998}
    found = criteria.certainty(None, prune, None)
    assert found["noisy"] is False
    assert "The removed set is outside noise" in words(found) and "over 99 % of the draws" in words(found)
    assert "not of this run's" not in words(found)
    prune["stability"] |= {"removed": [4, 5, 6], "unsettled": [[24, 8]], "sequences_needed": None}
    assert "the set that the scores give one by one, 4\u20136, not of this run's." in words(
        criteria.certainty(None, prune, None)
    )
    assert "no number of sequences is known to settle it" in words(criteria.certainty(None, prune, None))


@pytest.mark.parametrize("stability", [None, {}, {"unsettled": [[6, 8]]}])
def test_certainty_with_gaps(compared, stability):
    compared["prune"]["stability"] = stability
    found = criteria.certainty(None, compared["prune"], None)
    assert (found is None) == (not stability)
    assert not found or "not measured of the draws" in words(found)


def test_every_other_criterion_has_bars_and_its_own_removed_set(compared):
    made = criteria.other_bars(compared["scores"], compared["prune"], 9, "ppl")
    assert [one["criterion"] for one in made] == ["angular_last", "linear"]
    for one in made:
        order = compared["scores"]["criteria"][one["criterion"]]["order"]
        free = [block for block in order if block not in compared["prune"]["protected"]]
        assert one["removed"] == sorted(free[:9])
    assert [one["interval"] for one in made] == [True, False]


def test_heat_maps_name_the_best_window_with_and_without_the_protect_rule(compared, tmp_path):
    entry = compared["scores"]["criteria"]["angular_last"]
    for start in (0, 1):
        entry["windows"][start][8] = 0.123 + start
    (one,) = criteria.heat_maps(compared["scores"], compared["prune"], 9, tmp_path)
    assert one["open"] and len(one["svgs"]) == 2
    assert (
        one["note"] == "Least for 9 blocks: blocks 12\u201320, 0.450. Without the protect rule: blocks 0\u20138, 0.123."
    )
    assert (tmp_path / one["file"]).read_bytes().startswith(b"\x89PNG")


def test_linear_windows_fall_back_to_the_longest_measured(compared):
    planned, other = (criteria.linear_windows(compared["scores"], n) for n in (9, 5))
    assert (planned["n"], planned["planned"], planned["best"]) == (9, True, "blocks 15\u201323")
    assert (other["n"], other["planned"]) == (9, False)
    assert criteria.linear_windows(None, 9) is None


def test_linear_rows_hold_both_perplexities():
    measured = {
        "without_map": {"calibration": 60.1, "held_out": 67.6},
        "with_map": {"calibration": 50.2, "held_out": None},
    }
    runs = [{"blocks": [9, 10, 11], "folded_into": 8}]
    found = criteria.linear_rows({"linear": {"runs": runs, "tokens": 5120, "perplexity": measured}})
    assert found["folded"] == ["9\u201311 into block 8"] and found["texts"] == ["held-out", "calibration"]
    assert [row["cells"] for row in found["rows"]] == [["67.60", "60.10"], ["not finite", "50.20"]]
    assert criteria.linear_rows({"linear": None}) is None
    assert criteria.linear_rows({"linear": {"runs": [], "perplexity": None}})["texts"] == []
