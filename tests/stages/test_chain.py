"""A chain of two links: the rows of one run, the first dense model's figures, the same bytes however it is killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain import chain_links
from pipeline.commands.plan import plan
from pipeline.commands.plan_chain import plan_chain
from pipeline.config import STAGES, load_config
from pipeline.files import hash_file, read_json, write_json
from pipeline.reporting import notation
from pipeline.run import Run
from pipeline.stages.chain import shapes
from tests.command import Regrow
from tests.families import build
from tests.phases import phase
from tests.records import stage_record
from tests.tiny import CHAINED

#: What must be the same after kills, in both links.
SAME = (
    "data/manifest.json",
    "score/scores.json",
    "prune/model/model.safetensors",
    "train/position.json",
    "train/samples.jsonl",
    "train/held_out.jsonl",
    "train/exports/step-00000008/model.safetensors",
    "train/exports/step-00000008/config.json",
)


@pytest.fixture(scope="session")
def chain_config(configure: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """``chain_config(folder)``: the tiny config as a chain, in folder; runs go to folder/runs."""

    def write(folder: Path) -> Path:
        path = configure(folder).with_name("chain.yaml")
        path.write_text(CHAINED)
        return path

    return write


@pytest.fixture(scope="session")
def chained(chain_config, once) -> Path:
    """The folder that holds the config of a chain that nothing interrupted, and its runs. Not to be changed."""

    def make(folder: Path) -> None:
        command = Regrow("chain", chain_config(folder))
        assert command.wait() == 0, f"the chain failed:\n{command.output}"
        assert "[train] beginning at row 64, behind the last one of" in command.output, command.output

    return once("chained", make)


def link(folder: Path, number: int) -> Run:
    return Run(folder / "runs" / f"tiny-{number}")


def samples(run: Run) -> list[Any]:
    lines = (run.stage("train") / "samples.jsonl").read_text().splitlines()
    return [row for line in lines for row in json.loads(line)["rows"]]


def perplexities(run: Run) -> dict[str, Any]:
    models = read_json(run.stage("evaluate") / "results.json")["models"]
    return {name: model["perplexity"] for name, model in models.items()}


@pytest.mark.slow
def test_the_links_train_on_the_rows_of_one_run_over_all_tokens(chained, chain_config, regrow, tmp_path):
    """On one process, which does not change their order."""
    config, run = chain_config(tmp_path), tmp_path / "runs" / "tiny"
    for stage in ("data", "score", "prune"):
        shutil.copytree(link(chained, 1).stage(stage), run / stage)
    shutil.copy(link(chained, 1).folder / "hashes.json", run)
    command = regrow("train", config, "chain.parts=null", "prune.remove=2", "train.processes=1")
    assert command.wait() == 0, command.output
    first, second = (samples(link(chained, number)) for number in (1, 2))
    assert len(first) == len(second) == 64
    assert first + second == samples(Run(run))


def test_blocks_are_composed_and_the_dense_row_is_the_first_model(chained, tiny_model):
    first, second = (read_json(link(chained, number).stage("prune") / "prune.json") for number in (1, 2))
    left = [block for block in range(8) if block not in first["removed"]]
    gone = sorted([*first["removed"], *(left[block] for block in second["removed"])])
    assert first["first"] is None and second["first"]["kept"] == left
    assert not {0, 1, 7} & set(gone), "a protected block of the first model is gone"
    export = link(chained, 2).stage("train") / "exports" / "step-00000008"
    regrow = read_json(export / "config.json")["regrow"]
    assert (regrow["dense_blocks"], regrow["removed_blocks"]) == (8, gone)
    models = read_json(link(chained, 2).stage("evaluate") / "results.json")["models"]
    assert (models["dense"]["path"], models["dense"]["blocks"], models["regrown"]["blocks"]) == (str(tiny_model), 8, 4)
    card = (export / "README.md").read_text()
    assert f"counted from 0 in the base model: {', '.join(map(str, gone))}\n" in card
    (before,) = link(chained, 2).record("train")["result"]["before"]
    assert (before["run"], before["tokens"], before["blocks"]) == ("tiny-1", 4096, 6)
    assert "in 8 steps, of 8.19\u202fk in the whole chain" in card


def test_the_plan_the_card_and_the_page_count_what_the_links_recorded(chained):
    recorded = [link(chained, number).record("train")["result"]["flops"] for number in (1, 2)]
    config = load_config(chained / "chain.yaml")
    assert [one["flops"] for one in plan_chain(config)["links"]] == recorded
    assert plan(chain_links(config)[1])["flops"]["total"] == recorded[1], "of the last link alone"
    in_all, folder = notation.flops(sum(recorded)), link(chained, 2).stage("report")
    assert f"Training compute: {in_all} FLOPs in the whole chain" in (folder / "README.md").read_text()
    assert f"in all, trained on with {in_all} FLOPs." in (folder / "index.html").read_text()


def test_only_the_last_link_evaluates_and_each_is_an_ordinary_run(chained, here):
    done = [[stage for stage in STAGES if link(chained, number).record(stage)] for number in (1, 2)]
    assert done == [list(STAGES[:4]), list(STAGES)]
    config = link(chained, 2).folder / "config.yaml"
    status, out, message = here("run", config)
    assert status == 0 and out.count("done before, skipped") == len(STAGES), out + message
    status, out, _ = here("data-show", config, "--step", 1)
    assert status == 0 and out.startswith("step 1 of 8: rows 64 to 71"), out
    shown = [line.split("sha256 ")[1][:16] for line in out.splitlines() if line.startswith("row ")]
    assert shown == [sha256 for _, _, sha256 in samples(link(chained, 2))[:8]]


def test_status_tells_of_all_links(chained, here, tmp_path):
    status, out, _ = here("status", chained / "runs" / "tiny")
    assert status == 0 and "chain tiny in" in out and "2 links" in out
    assert out.count(" done ") == 4 + 6 and "run tiny-2 in" in out
    (tmp_path / "tiny").mkdir()
    text = (chained / "runs" / "tiny" / "config.yaml").read_text().replace(str(chained), str(tmp_path / "no"))
    (tmp_path / "tiny" / "config.yaml").write_text(text)
    assert "run tiny-2 not begun" in here("status", tmp_path / "tiny")[1]


def test_a_config_of_a_chain_is_no_run_and_the_other_way(refused, chain_config, tmp_path):
    config = chain_config(tmp_path)
    for command in (["run", config], ["train", config], ["data-show", config, "--step", 1]):
        assert "chain.parts 2: this config is a chain of runs; start it with regrow chain" in refused(*command)
    assert "chain.parts is not set" in refused("chain", tmp_path / "tiny.yaml")
    assert "--redo 3: the links of this chain are 1 to 2" in refused("chain", config, "--redo", 3)
    (tmp_path / "runs" / "tiny" / "score").mkdir(parents=True)
    assert "run tiny has a stage score of its own, and is no chain" in refused("chain", config)


def test_what_a_later_link_would_refuse_is_refused_at_the_start(refused, chain_config, tmp_path):
    config = chain_config(tmp_path)
    message = refused("chain", config, "prune.remove=6")
    assert "link 2 of 2, run tiny-2: remove 3: only 2 of 5 blocks may go" in message
    message = refused("chain", config, "train.warmup_steps=3", "chain.token_shares=[15, 1]")
    assert "link 2 of 2" in message and "train.warmup_steps 3: the run has" in message
    message = refused("chain", config, "data.held_out=null")
    assert "data.held_out is not set" in message, "the last link alone evaluates"
    assert not (tmp_path / "runs").exists(), "a refused command left a run"


def test_a_later_link_s_model_has_as_many_blocks_fewer(chain_config, tmp_path):
    """And where these cannot go as they stand, the description ends."""
    path = chain_config(tmp_path)
    blocks = [
        [model.config.num_hidden_layers for model in shapes(chain_links(load_config(path, asked)), build("llama"))]
        for asked in (["chain.parts=4"], ["prune.protect_first=5"])
    ]
    assert blocks == [[6, 5, 4, 3], [6]]


def test_a_chain_is_held_and_a_changed_one_is_refused_by_its_link(refused, chain_config, chained, tmp_path):
    config = chain_config(tmp_path)
    shutil.copytree(chained / "runs", tmp_path / "runs")
    with Run(tmp_path / "runs" / "tiny").lock():
        assert "run tiny is in use by" in refused("chain", config)
    with link(tmp_path, 2).lock():
        assert "run tiny-2 is in use by" in refused("chain", config)
    message = refused("chain", config, "train.learning_rate=2e-3")
    assert "link 1 of 2, run tiny-1: stage train is done, but not with this config" in message
    assert "in a chain that is --redo 1" in message


def test_more_tokens_for_a_chain_s_link_that_is_done_are_refused(refused, chain_config, tmp_path):
    """A run may go on; the links behind it are made of what it was."""
    config = chain_config(tmp_path)
    done = chain_links(load_config(config))[0]
    done_so = stage_record(fingerprint={"config": done.read_by("train")})
    write_json(link(tmp_path, 1).stage("train") / "stage.json", done_so)
    message = refused("chain", config, "train.tokens=16384", "train.schedule=cosine")
    assert (
        "link 1 of 2, run tiny-1: stage train is done, but not with this config:\n  train.tokens: was 4096, is"
        in message
    )
    assert "add --redo train; in a chain that is --redo 1" in message


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_chain_killed_in_either_link_and_between_ends_in_the_same_bytes(regrow, chain_config, chained, tmp_path):
    config = chain_config(tmp_path)
    kills = (
        ("[train] step 5 of 8", 1, "train"),
        ("[chain] link 2 of 2", 2, "score"),
        ("[score] sequence 4 of 12", 2, "score"),
    )
    for line, number, stage in kills:
        with phase(f"kill at {line}"):
            command = regrow("chain", config)
            command.read_until(line)
            command.kill()
            command.wait()
            assert link(tmp_path, number).record(stage) is None, f"the kill came too late: {stage} was done"
    with phase("to the end"):
        last = regrow("chain", config)
        assert last.wait() == 0, last.output
    with phase("the same bytes"):
        for number in (1, 2):
            ours, theirs = link(tmp_path, number).folder, link(chained, number).folder
            others = [name for name in SAME if hash_file(ours / name) != hash_file(theirs / name)]
            assert not others, f"link {number}: {others} are others after the kills"
        ours, theirs = (perplexities(link(folder, 2)) for folder in (tmp_path, chained))
        assert ours == theirs, "perplexities are others after the kills"
    with phase("a link is done again"):
        aside = link(tmp_path, 2).folder / "aside" / "001"
        again = regrow("chain", config, "--redo", 2)
        again.read_until("[score] started")
        again.kill()
        again.wait()
        assert (aside / "train" / "stage.json").exists() and link(tmp_path, 1).record("train")
