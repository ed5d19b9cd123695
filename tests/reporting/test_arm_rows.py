"""The tables of a comparison: numbers in a row compare, with paired intervals, and each says what it is of."""

from __future__ import annotations

import math
from dataclasses import replace

from pipeline.reporting.arm_rows import NOTHING, config_rows, cost_rows, perplexity_groups, speed_rows, task_rows
from pipeline.reporting.arms import judged_rows
from pipeline.reporting.intervals import student
from pipeline.reporting.notation import significant
from tests.reporting.arms import VALUES, arm, line
from tests.reporting.made_up import made_up_models, made_up_tasks


def texts(row) -> list[str]:
    return [cell["text"] for cell in row["cells"]]


def groups_of(*arms):
    return perplexity_groups(arms, judged_rows(arms))


def test_a_ratio_has_the_interval_of_the_differences_on_the_same_rows():
    (group,) = groups_of(arm("a"), arm("b", worse=1.1))
    regrown = group["rows"][0]
    assert (regrown["label"], texts(regrown)) == ("Regrown", ["22.10", "24.31"])
    # Rows differ by 0.1 nats up and down in turn: the standard error of 80 such is 0.1 / sqrt(79).
    margin = student(79) * 0.1 / math.sqrt(79)
    ends = [significant(1.1 * math.exp(sign * margin), 3) for sign in (-1, 1)]
    assert regrown["cells"][1]["small"][1] == f"\u00d7\u202f1.10 ({ends[0]} to {ends[1]})"
    alone = regrown["cells"][0]["small"]
    assert alone[0] == "20.7 to 23.6" and alone[-1] == "axxxxxxx, bfloat16" and len(alone) == 2
    assert group["rows"][2]["cells"][1]["small"][1:] == ["same weights", "00000000, bfloat16"], "of the dense model"
    assert group["note"] == "sha256 cccccccc, 80 rows, length 256, BOS policy: document, 20.5\u202fk tokens"


def test_without_losses_of_rows_a_ratio_stands_alone():
    bare = arm("b", worse=1.1)
    del bare.records.models["regrown"]["perplexity"]["held_out"]["row_losses"]
    (group,) = groups_of(arm("a"), bare)
    assert group["rows"][0]["cells"][1]["small"][1] == "\u00d7\u202f1.10"


def test_what_was_judged_on_other_rows_is_in_no_row_with_it():
    bare = replace(arm("b"), records=replace(arm("b").records, results=None, curve=[line(60, "t" * 64)]))
    groups = groups_of(arm("a"), bare)
    assert [(group["label"], group["differs"]) for group in groups] == [
        ("Held-out text", "80 rows"),
        ("Held-out text", "16 rows"),
    ]
    assert texts(groups[0]["rows"][0]) == ["22.10", NOTHING] and texts(groups[1]["rows"][0]) == [NOTHING, "30.00"]
    assert groups[1]["rows"][0]["note"] == "export of step 60"
    assert groups[1]["rows"][0]["cells"][1]["small"][-1] == "tttttttt, bfloat16"


def test_cost_is_told_as_far_as_it_is_known():
    rows = cost_rows([arm("a"), arm("b", flops=None, hours=None, device=None, inputs={"cost": {}}, steps=90)], "Hours")
    cells = {row["label"]: row["cells"] for row in rows}
    assert list(cells) == ["Blocks", "Parameters", "Tokens", "FLOPs", "Hours"], "files of weights are of no arm here"
    assert [cell["text"] for cell in cells["Blocks"]] == ["21 of 30"] * 2
    assert [cell["text"] for cell in cells["FLOPs"]] == ["7.6e13", NOTHING] and cells["FLOPs"][1]["missing"]
    assert [cell["small"] for cell in cells["Tokens"]] == [[], ["step 60 of 90"]]
    assert [cell["text"] for cell in cells["Hours"]] == ["0.0600", NOTHING] and cells["Hours"][0]["small"] == ["CPU"]


def test_blocks_of_what_was_not_evaluated_are_those_that_training_began_with():
    for init, blocks in (("pruned", "21 of 30"), ("dense", "30 of 30"), ("somewhere/else", NOTHING)):
        bare = arm("a", values=VALUES | {"train.init": init})
        bare = replace(bare, records=replace(bare.records, results=None))
        assert texts(cost_rows([bare, arm("b")], "Hours")[0]) == [blocks, "21 of 30"]


def test_tasks_share_a_row_where_items_and_metric_are_the_same():
    results = [made_up_tasks(made_up_models()) for _ in range(2)]
    results[1]["models"]["regrown"]["tasks"]["piqa"]["sha256"] = "1" * 64
    results[1]["models"]["regrown"]["tasks"]["sums"]["value"] = 0.1
    rows = {row["label"]: row for row in task_rows([arm(f"{n}", inputs={"results": r}) for n, r in enumerate(results)])}
    assert texts(rows["piqa, items 000000"]) == ["45.0", NOTHING]
    assert texts(rows["piqa, items 111111"]) == [NOTHING, "45.0"]
    assert texts(rows["sums"]) == ["4.0", "10.0"]
    assert rows["sums"]["cells"][1]["small"][:2] == ["\u00b1 3.0", "+6.0"]
    assert rows["sums"]["note"] == "exact_match, first number, 200 items, sha256 00000000"


def test_speeds_share_a_row_on_the_same_machine_alone():
    here, there = arm("a"), arm("b")
    there.records.cost["hardware"]["processor"] = "another"
    for one in (here, there):
        one.records.models["regrown"]["generation"] |= {"device": "cpu", "threads": 1, "dtype": "bfloat16"}
    rows = speed_rows([here, there, here])
    assert [texts(row) for row in rows if row["label"] == "Latency"] == [
        ["2.81\u202fs", NOTHING, "2.81\u202fs"],
        [NOTHING, "2.81\u202fs", NOTHING],
    ]
    assert rows[0]["note"] == "12 prompt + 64 new tokens, batch 1, made-up processor, 1 thread, bfloat16"


def test_keys_that_differ_are_listed_and_no_others():
    other = arm("b", values=VALUES | {"run.name": "b", "prune.remove": 12, "evaluate.perplexity.wiki": {"rows": 2}})
    rows = config_rows([arm("a"), other, arm("c")])
    assert [(row["label"], *texts(row)) for row in rows] == [
        ("prune.remove", "9", "12", "9"),
        ("evaluate.perplexity.wiki.rows", NOTHING, "2", NOTHING),
    ]
    one, two = ([{"path": path, "instruction": {"prompt": "long"}}] for path in ("a", "b"))
    rows = config_rows([arm(path, values=VALUES | {"data.sources": of}) for path, of in (("a", one), ("b", two))])
    assert [(row["label"], *texts(row)) for row in rows] == [("data.sources[0].path", "a", "b")]
