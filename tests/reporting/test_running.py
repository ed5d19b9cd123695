"""The cost of running: what the table, the card and the curves say of it, and what of a batch that does not fit."""

from __future__ import annotations

import re

import pytest

from pipeline.reporting import Records, render_card
from pipeline.reporting.drawing import to_svg
from pipeline.reporting.running import cost_curves, cost_points, running_lines, running_table
from tests.reporting.costs import models_with_costs, record
from tests.reporting.reading import render


@pytest.fixture
def models():
    return models_with_costs()


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


def test_the_table_has_every_size_and_says_what_did_not_fit(models):
    table = running_table(models)
    assert [(row["new_tokens"], row["batch"]) for row in table["rows"]] == [
        (new, batch) for new in (128, 512) for batch in (1, 4, 16)
    ]
    dense, pruned, _ = table["rows"][0]["groups"]
    # 131 token times of 20 ms for 128 tokens.
    assert [plain(cell) for cell in dense["cells"]] == ["48.9", "80 ms", "20.0 ms", "513.0 MiB"]
    assert plain(pruned["cells"][2]) == "12.5 ms"
    assert [row["groups"][0]["instead"] for row in table["rows"]] == ["", "", "", "", "out of memory", "not tried"]
    for words in ("12 tokens of held-out text", "medians of 20 runs, after 10 to warm up", "did not fit was not tried"):
        assert words in table["note"], words


def test_the_note_says_what_the_memory_counts(models):
    assert "on the GPU" in running_table(models)["note"]
    for entry in models.values():
        entry["cost"] = [record(16, 1, 0.1) | {"peak_memory_of": "process", "repeats": 1}]
    note = running_table(models)["note"]
    assert "a process of its own" in note and "on the GPU" not in note
    assert "a single run, too little to compare" in note and "not tried" not in note


def test_a_model_without_costs_is_said_to_lack_them_and_memory_that_was_not_counted_too(models):
    del models["pruned"]["cost"]
    models["regrown"]["cost"][0]["peak_memory_bytes"] = None
    groups = running_table(models)["rows"][0]["groups"]
    assert groups[1]["instead"] == "not measured" and groups[2]["cells"][3] == "not measured"
    assert running_table({}) is None and running_lines({}) == []


def test_the_curves_hold_every_measured_batch_with_its_spread(models):
    points = cost_points(models, 512)
    assert {model: [one["batch"] for one in records] for model, records in points.items()} == {
        "dense": [1],
        "pruned": [1, 4, 16],
        "regrown": [1, 4, 16],
    }
    for narrow in (False, True):
        speeds, latencies = cost_curves(points, narrow).axes
        lines = {line.get_gid(): line for axes in (speeds, latencies) for line in axes.get_lines()}
        assert list(lines["speed-pruned"].get_xdata()) == [1, 4, 16]
        assert list(lines["speed-pruned"].get_ydata()) == pytest.approx(
            [one["tokens_per_second"] for one in points["pruned"]]
        )
        assert list(lines["latency-dense"].get_ydata()) == [points["dense"][0]["latency_seconds"]["median"]]
        bars = [[y for _, y in segment] for one in latencies.collections for segment in one.get_segments()]
        spread = points["dense"][0]["latency_seconds"]
        assert bars[0] == [spread["lowest"], spread["highest"]]
        low, high = latencies.get_ylim()
        assert low < min(map(min, bars)) and high > max(map(max, bars)), "a bar runs out of the picture"
        assert (latencies.get_xscale(), latencies.get_yscale()) == ("log", "log")


def test_the_models_of_a_curve_are_told_apart_without_colours(models):
    figure = cost_curves(cost_points(models, 128))
    looks = {(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(looks) == 3
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", to_svg(figure, "cost", "cost"))


def test_table_and_curves_stand_on_the_page(worded, models, tmp_path):
    _, page = render(worded | {"results": {"models": models}}, tmp_path)
    assert page.faults == []
    words = plain(page.words)
    for expected in (
        "What they cost to run",
        "512, batch 4 out of memory",
        "512, batch 16 not tried",
        "48.9 80 ms 20.0 ms 513.0 MiB",
        "Files of weights 269 MB 205 MB",
        "512 new tokens after each prompt.",
    ):
        assert expected in words, f"missing: {expected}"
    assert page.tags.count("svg") == 4, "two lengths, each for wide and narrow windows"
    for name in ("cost-128-tokens.png", "cost-512-tokens.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and name in words


def test_one_batch_is_a_table_and_no_picture_and_no_cost_is_nothing(worded, models, tmp_path):
    for entry in models.values():
        entry["cost"] = entry["cost"][:1]
    _, page = render(worded | {"results": {"models": models}}, tmp_path)
    assert "What they cost to run" in page.words and "svg" not in page.tags
    assert "cost to run" not in render(worded, tmp_path)[1].words


def test_the_card_has_a_row_for_each_size(made_up, models):
    keys = ("name", "prune", "scores", "cost", "provenance")
    card = plain(render_card(Records(**{key: made_up[key] for key in keys}, results={"models": models})))
    assert "| batch 1, 128 new tokens | 48.9 tokens/s, 513.0 MiB | 78.2 tokens/s, 513.0 MiB |" in card
    assert "| batch 4, 512 new tokens | out of memory | 225 tokens/s" in card
    table = re.search(r"\| Generated tokens per second.*\n(?:\|.*\n)+", card).group()
    assert len(table.splitlines()) == 2 + 6 and {line.count("|") for line in table.splitlines()} == {5}
    assert "Generated tokens" not in render_card(Records(**{key: made_up[key] for key in (*keys, "results")}))
