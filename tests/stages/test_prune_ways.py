"""The prune stage's ways of choosing, on a scored run: windows, greedy, a budget, controls, linear maps, comparison."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipeline.config import STAGES, load_config
from pipeline.config.pruning import Control, Criterion
from pipeline.criteria import CONTROLS, CRITERIA
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.importance.controls import control_blocks
from pipeline.importance.cut import Cut
from pipeline.importance.greedy import greedy_rounds
from pipeline.importance.ppl import perplexity_without
from pipeline.importance.selection import choose_blocks, choose_window
from pipeline.launch import Place
from pipeline.model.load import load_model
from pipeline.run import Run
from pipeline.stages import data, prune, score
from pipeline.stages.preflight import preflight
from pipeline.world import World
from tests.records import stage_record

SCORING = [
    "score.sequences=4",
    "score.length=32",
    "score.dtype=float32",
    f"score.criteria=[{', '.join(CRITERIA)}]",
    "score.linear_n=[2, 3]",
    "score.ppl_n=[2, 3]",
]
PROTECT = {"protect_first": 2, "protect_last": 1}


def silent(line: str) -> None:
    """What a stage says goes nowhere."""


@pytest.fixture(scope="module")
def scored(configure, tmp_path_factory) -> tuple[Path, Run]:
    """A config's path, and a run whose blocks are scored by every criterion. Not to be changed."""
    folder = tmp_path_factory.mktemp("scored")
    path, run = configure(folder), Run(folder / "run")
    for stage in (data, score):
        stage.work(load_config(path, SCORING), run, World.join(Place()), silent)
    return path, run


@pytest.fixture
def prune_by(scored, tmp_path):
    """``prune_by(*overrides)``: the record of pruning a copy of the scored run, that run, and what was said."""
    path, source = scored

    def carry_out(*overrides: str) -> tuple[dict, Run, list[str]]:
        run, said = Run(tmp_path / "run"), []
        shutil.rmtree(run.folder, ignore_errors=True)
        shutil.copytree(source.folder, run.folder)
        prune.work(load_config(path, [*SCORING, *overrides]), run, World.join(Place()), said.append)
        return read_json(run.stage("prune") / "prune.json"), run, said

    return carry_out


@pytest.fixture(scope="module")
def calibration(scored) -> torch.Tensor:
    return torch.tensor(read_json(scored[1].stage("score") / "calibration.json")["input_ids"])


def test_windows_and_controls_choose_what_the_library_chooses(prune_by, scored):
    criteria = read_json(scored[1].stage("score") / "scores.json")["criteria"]
    for criterion in ("angular_last", "linear", "ppl"):
        record, run, _ = prune_by(f"prune.criterion={criterion}", "prune.selection=contiguous", "prune.remove=3")
        assert record["removed"] == choose_window(criteria[criterion]["windows"], Cut(remove=3, **PROTECT))
        assert (record["selection"], record["criterion"], record["stability"]) == ("contiguous", criterion, None)
        assert not (run.stage("prune") / "comparison.json").exists()
    for control in CONTROLS:
        record, _, _ = prune_by(f"prune.criterion={control}", "prune.seed=5")
        assert record["removed"] == control_blocks(control, 8, Cut(remove=2, **PROTECT), seed=5)
    with pytest.raises(RegrowError, match=r"windows of 1, 2, 3 blocks were scored, not of 4; score these too"):
        prune_by("prune.criterion=linear", "prune.selection=contiguous", "prune.remove=4")


def test_one_shot_removal_says_how_sure_it_is(prune_by):
    record, _, _ = prune_by("prune.criterion=block_influence")
    stable = record["stability"]
    assert stable["removed"] == record["removed"] and 0 < stable["agreement"] <= 1 and stable["sequences"] == 4
    assert len(stable["chances"]) == 8 and all(stable["chances"][block] == 0 for block in (0, 1, 7))
    assert prune_by("prune.criterion=magnitude")[0]["stability"] is None, "magnitude has no sequences"


def test_greedy_removal_goes_on_from_its_rounds(prune_by, scored, tiny_model, calibration):
    record, run, said = prune_by("prune.selection=greedy", "prune.remove=3")
    model = load_model(tiny_model, dtype="float32")
    rounds = list(greedy_rounds(model, calibration.split(1), Cut(remove=3, **PROTECT)))
    assert record["removed"] == sorted(one.removed for one in rounds)
    assert [one["removed"] for one in record["greedy"]] == [one.removed for one in rounds]
    assert [one["perplexity"] for one in record["greedy"]] == pytest.approx(
        [one.perplexity for one in rounds], rel=1e-6
    )
    assert sum("greedy round" in line for line in said) == 3
    # Killed in the third round and started again, it takes up the two that were kept.
    kept = run.stage("prune") / "progress" / "greedy.json"
    write_json(kept, read_json(kept)[:2])
    config = load_config(scored[0], [*SCORING, "prune.selection=greedy", "prune.remove=3"])
    again: list[str] = []
    prune.work(config, run, World.join(Place()), again.append)
    assert read_json(run.stage("prune") / "prune.json") == record
    assert sum("greedy round" in line for line in again) == 1


def test_a_budget_is_kept(prune_by, scored, tiny_model, calibration):
    model = load_model(tiny_model, dtype="float32")

    def perplexity(blocks: list[int]) -> float:
        return perplexity_without(model, calibration.split(1), blocks)

    order = read_json(scored[1].stage("score") / "scores.json")["criteria"]["block_influence"]["order"]
    three = max(perplexity(choose_blocks(order, Cut(remove=count, **PROTECT))) for count in (1, 2, 3))
    record, _, _ = prune_by("prune.criterion=block_influence", f"prune.perplexity={three * 1.000001}")
    assert len(record["removed"]) >= 3 and perplexity(record["removed"]) <= three * 1.000001
    one_more = len(record["removed"]) + 1
    more = choose_blocks(order, Cut(remove=one_more, **PROTECT)) if one_more <= 5 else None
    assert more is None or perplexity(more) > three * 1.000001, "one more block would have been within the budget"
    with pytest.raises(RegrowError, match=r"the perplexity is .*, the budget 2"):
        prune_by("prune.perplexity=2")
    with pytest.raises(RegrowError, match=r"perplexity 2: without any one block .* is above it"):
        prune_by("prune.perplexity=2", "prune.selection=greedy")


def test_linear_maps_take_the_place_of_what_goes(prune_by):
    """The folded model computes what was measured with the maps acting on the outputs."""
    record, run, _ = prune_by("prune.linear=true", "prune.blocks=[2, 3, 5]")
    assert record["linear"]["runs"] == [{"blocks": [2, 3], "folded_into": 1}, {"blocks": [5], "folded_into": 4}]
    assert record["linear"]["tokens"] >= 8 * 64
    ways = record["linear"]["perplexity"]
    assert ways["with_map"] != ways["without_map"]
    model = load_model(run.stage("prune") / "model", dtype="float32")
    ids = torch.tensor(read_json(run.stage("score") / "calibration.json")["input_ids"])
    assert model.config.num_hidden_layers == 5
    # The weights were rounded to bf16 when they were saved.
    assert perplexity_without(model, [ids], []) == pytest.approx(ways["with_map"]["calibration"], rel=5e-3)
    assert [check["check"] for check in record["self_test"]["checks"]].count("removed in memory and reloaded") == 1


def test_the_comparison_measures_every_way(prune_by, tiny_model, calibration):
    _, run, said = prune_by(
        "prune.compare={enabled: true, shares: [0.25, 0.9], greedy: true, rows: 2, length: 64}", "prune.remove=3"
    )
    comparison = read_json(run.stage("prune") / "comparison.json")
    assert comparison["removals"] == [2, 3, 7] and comparison["planned"] == 3 and comparison["protected"] == [0, 1, 7]
    found = {(one["by"], one["selection"], one["linear_map"], one["remove"]): one for one in comparison["sets"]}
    assert len(found) == len(comparison["sets"]), "a set stands twice"
    for count in (2, 3):
        names = [(name, "one-shot", False, count) for name in CRITERIA]
        names += [(name, "contiguous", False, count) for name in ("angular_last", "angular_mean", "linear", "ppl")]
        names += [(name, "control", False, count) for name in CONTROLS]
        assert set(names) <= set(found), f"missing at {count}: {set(names) - set(found)}"
    assert not [name for name in found if name[3] == 7], "the protect rule lets five blocks go"
    assert ("linear", "contiguous", True, 3) in found or found["linear", "contiguous", False, 3]["blocks"][0] == 0
    assert {count for by, way, _, count in found if way == "greedy"} == {1, 2, 3, 4, 5}
    assert {count for by, way, _, count in found if (by, way) == ("ppl", "one-shot")} == {1, 2, 3, 4, 5}
    model = load_model(tiny_model, dtype="float32")
    for one in (found["tail", "control", False, 3], found["ppl", "greedy", False, 4]):
        expected = perplexity_without(model, calibration.split(1), one["blocks"])
        assert one["perplexity"]["calibration"] == pytest.approx(expected, rel=1e-5)
        assert one["perplexity"]["held_out"] > 1
    assert comparison["held_out"].items() >= {"rows": 2, "length": 64, "bos": "document"}.items()
    assert any(line.startswith("comparison 1 of ") for line in said)


def test_whatever_was_chosen_stands_beside_the_controls(prune_by):
    """Also a set that no criterion chose, and one whose runs are replaced by maps."""
    for overrides, own in (
        (["prune.blocks=[2, 6]"], ("config", "given")),
        (["prune.selection=contiguous", "prune.criterion=euclidean"], ("euclidean", "contiguous")),
    ):
        record, run, _ = prune_by("prune.compare={enabled: true, rows: 2, length: 64}", "prune.linear=true", *overrides)
        comparison = read_json(run.stage("prune") / "comparison.json")
        found = {(one["by"], one["selection"], one["linear_map"]): one for one in comparison["sets"]}
        assert found[*own, False]["blocks"] == found[*own, True]["blocks"] == record["removed"], own
        assert found[*own, True]["perplexity"] == record["linear"]["perplexity"]["with_map"]
        assert {control for control, way, _ in found if way == "control"} == set(CONTROLS), overrides


def test_a_map_needs_a_block_to_be_folded_into(prune_by):
    with pytest.raises(RegrowError, match=r"linear maps: every removed block lies at the start"):
        prune_by("prune.linear=true", "prune.blocks=[0, 1]")


def test_a_model_that_was_streamed_is_not_run_whole(scored, tmp_path):
    path, source = scored
    run = Run(tmp_path / "streamed")
    shutil.copytree(source.folder, run.folder)
    write_json(run.stage("score") / "stage.json", stage_record(result={"loop": "block"}))
    greedy = load_config(path, [*SCORING, "prune.selection=greedy", "model.dispatch=false"])
    with pytest.raises(RegrowError, match=r"streams it block by block, and model\.dispatch is false; set"):
        prune.work(greedy, run, World.join(Place()), silent)


def test_a_model_that_is_spread_is_compared_to_the_same_figures(prune_by):
    asked = ["prune.compare={enabled: true, rows: 2, length: 64}", "prune.linear=true", "prune.selection=greedy"]
    whole, run, _ = prune_by(*asked)
    comparison = read_json(run.stage("prune") / "comparison.json")
    spread, run, said = prune_by(*asked, "model.host_memory=1000000")
    assert any("the dense model is dispatched: " in line and " on disk" in line for line in said), said
    assert read_json(run.stage("prune") / "comparison.json") == comparison
    assert spread == whole
    assert not list((run.stage("prune") / "progress" / "offloaded").iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["score.criteria=[ppl, linear]", "score.linear_n=[8]"], r"score\.linear_n 8: the model has 8 blocks"),
        (["score.criteria=[ppl, linear]", "score.linear_sequences=8"], r"leaves 6 of 32 tokens .* 16 are needed"),
        (
            ["score.criteria=[linear]", "score.linear_n=[3]", "prune.criterion=linear", "prune.selection=contiguous"],
            r"prune removes a window of 2 blocks by linear; add it",
        ),
        (["score.ppl_n=[8]"], r"score\.ppl_n 8: the model has 8 blocks"),
        (["score.ppl_n=[3]", "prune.selection=contiguous"], r"prune removes a window of 2 blocks by ppl; add 2 to it"),
        (["evaluate.generation.new_tokens=100000"], r"100000 are to follow, but the model has only \d+ positions"),
        (["prune.criterion=taylor"], r"prune\.criterion taylor: score\.criteria are ppl"),
    ],
)
def test_what_must_fail_later_fails_before_any_stage(scored, overrides, message):
    path, _ = scored
    with pytest.raises(RegrowError, match=message):
        preflight(STAGES, load_config(path, overrides), Place())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["score.position=32"], r"position 32 is not a token of a sequence of length 32"),
        (["score.criteria=[taylor]", "score.dtype=float16"], r"gradients, which vanish in float16"),
        (["score.criteria=[ppl, angular_lst]"], r"did you mean 'angular_last'\?"),
    ],
)
def test_a_config_that_cannot_be_scored_is_refused(scored, overrides, message):
    path, _ = scored
    with pytest.raises(RegrowError, match=message):
        load_config(path, ["score.length=32", *overrides])


def test_the_config_knows_every_criterion():
    assert set(get_args(Criterion)) == set(CRITERIA) and set(get_args(Control)) == set(CONTROLS)


def test_what_was_not_scored_is_refused(scored, tmp_path):
    path, _ = scored
    with pytest.raises(RegrowError, match=r"prune\.criterion taylor: score\.criteria are ppl; add it to score"):
        prune.require_scored(load_config(path, ["prune.criterion=taylor"]), ["ppl"])
    prune.require_scored(load_config(path, ["prune.criterion=tail"]), ["ppl"])
    for wrong, message in (
        (["prune.selection=contiguous", "prune.criterion=taylor"], "contiguous needs a criterion of windows"),
        (["prune.selection=greedy", "prune.criterion=taylor"], "greedy scores by ppl in every round"),
        (["prune.selection=greedy", "prune.blocks=[3]"], "blocks names what goes"),
    ):
        with pytest.raises(RegrowError, match=message):
            load_config(path, wrong)
