"""The table of greedy beside one-shot removal, and its sentence, say what comparison.json holds."""

from pipeline.reporting.greedy import greedy_table
from tests.reporting.test_comparison import perplexity


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


def test_a_difference_that_the_rows_do_not_show_is_no_lower_and_no_higher(record, prune):
    for one in record["sets"]:
        if one["by"] == "ppl" and one["remove"] == 9:
            losses = [3.0, 4.0, 5.0] if one["selection"] == "greedy" else [3.3, 3.9, 4.9]
            one["row_losses"] = {"held_out": losses}
    assert "and not told apart at k = 9 (1 of 12)" in greedy_table(record, prune)["sentence"]
