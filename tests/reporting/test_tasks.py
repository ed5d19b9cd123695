"""Rows of tasks: choices first, what is generated last, differences with whether they are more than chance."""

from __future__ import annotations

from pipeline.evaluation.tasks.definitions import SHORTENED_LLM
from pipeline.reporting.notation import MINUS
from pipeline.reporting.tasks import points, task_rows, verdict
from tests.reporting.made_up import made_up_task, made_up_tasks


def made_up_rows(**entries: float):
    results = made_up_tasks({name: {} for name in ("dense", "pruned", "regrown")})
    results["models"]["dense"]["tasks"] |= {task: made_up_task(value, task) for task, value in entries.items()}
    return task_rows(results["models"], results["paired"])


def test_what_is_generated_stands_behind_all_choices_and_their_mean():
    rows = made_up_rows()
    assert [row["task"] for row in rows] == [*SHORTENED_LLM, "mean of 7", "sums"]
    assert [row["kind"] for row in rows] == ["choices"] * 8 + ["generated"]


def test_a_difference_says_whether_it_is_more_than_chance():
    *_, sums = made_up_rows()
    assert [cell["compared"] for cell in sums["cells"]] == [
        [],
        [{"text": f"{MINUS}30.0, p < 0.001", "real": True}],
        [{"text": f"{MINUS}30.0, p < 0.001", "real": True}, {"text": "on pruned same, p 1", "real": False}],
    ]
    untested = made_up_rows()[0]["cells"][2]
    assert untested["compared"] == [{"text": f"{MINUS}5.0", "real": False}], "without a test nothing is called real"


def test_a_task_of_one_model_leaves_the_others_open_and_is_in_no_verdict():
    rows = made_up_rows(gsm8k=0.1)
    (own,) = [row for row in rows if row["task"] == "gsm8k"]
    assert [cell["text"] for cell in own["cells"]] == ["10.0", "not measured", "not measured"]
    assert [words.split(",")[0].split(":")[0] for words in verdict(rows)] == ["Generated answers"]
    assert len(verdict(made_up_rows())) == 2 and verdict([]) == []


def test_points_have_a_sign_of_their_own():
    assert [points(value) for value in (0.123, -0.123, 0.0001, -0.0004)] == ["+12.3", f"{MINUS}12.3", "same", "same"]


def test_a_metric_that_is_no_share_is_shown_as_it_is_and_stands_apart():
    """A perplexity: lower is better, and a hundred is not all."""
    rows = made_up_rows(lambada=35.2)
    assert rows[-1]["task"] != "lambada", "a share by default"
    results = made_up_tasks({name: {} for name in ("dense", "pruned", "regrown")})
    for name, value in (("dense", 35.2), ("pruned", 900.0), ("regrown", 80.0)):
        entry = made_up_task(value, "lambada") | {"metric": "perplexity", "share": False, "stderr": 1.25}
        results["models"][name]["tasks"]["lambada"] = entry
    worse = {"difference": 44.8, "better": 62, "worse": 2, "items": 200, "p": 1e-12}
    rows = task_rows(results["models"], {"regrown - dense": {"lambada": worse}})
    own = rows[-1]
    assert (own["task"], own["kind"]) == ("lambada", "other")
    assert [(cell["text"], cell["error"], cell["compared"]) for cell in own["cells"]] == [
        ("35.20", "± 1.2", []),
        ("900.0", "± 1.2", []),
        ("80.00", "± 1.2", []),
    ]
    assert not any("3520" in words or "lambada" in words for words in verdict(rows)) and len(verdict(rows)) == 2
