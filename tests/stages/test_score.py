"""The score stage in this process and in several: the same losses, the same order, and a sweep that goes on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config import Config, load_config
from pipeline.criteria import CRITERIA
from pipeline.data.corpus.listing import list_source
from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.jsonl import write_jsonl_zst
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.shards import build_manifest, read_manifest
from pipeline.data.sources import TextSource
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.importance.selection import read_block_order
from pipeline.importance.sweep import removal_losses
from pipeline.launch import Place
from pipeline.model.load import load_model
from pipeline.run import Run
from pipeline.stages import data, score
from pipeline.world import World
from tests import ROOT

OVERRIDES = ["score.sequences=6", "score.length=32", "score.dtype=float32"]
EVERY = [*OVERRIDES, f"score.criteria=[{', '.join(CRITERIA)}]", "score.linear_n=[1, 2]", "score.ppl_n=[3, 2]"]


def silent(line: str) -> None:
    """What a stage says goes nowhere."""


def score_here(config: Config, run: Run, said: list[str] | None = None) -> dict:
    data.work(config, run, World.join(Place()), silent)
    score.work(config, run, World.join(Place()), silent if said is None else said.append)
    return read_json(run.stage("score") / "scores.json")


@pytest.fixture
def config(tiny_config) -> Config:
    return load_config(tiny_config, OVERRIDES)


def test_scores_are_the_perplexities_of_the_drawn_sequences(config, tmp_path, tiny_model):
    run = Run(tmp_path / "one")
    scores = score_here(config, run)
    ids = torch.tensor(read_json(run.stage("score") / "calibration.json")["input_ids"])
    assert ids.shape == (6, 32)
    losses = removal_losses(load_model(tiny_model, dtype="float32"), ids)
    expected = [math.exp(total / (6 * 31)) for total in losses.sum(dim=1).tolist()]
    ppl = scores["criteria"]["ppl"]
    assert [*ppl["scores"], ppl["dense"]] == pytest.approx(expected, rel=1e-6)
    assert scores["blocks"] == 8 and scores["calibration"]["targets"] == 6 * 31
    assert torch.tensor(ppl["sequence_losses"]).shape == (8, 6) and len(ppl["dense_sequence_losses"]) == 6
    order = read_block_order(run.stage("score") / "block_order.csv", 8)
    assert order == ppl["order"] == sorted(range(8), key=lambda block: ppl["scores"][block])
    assert set(run.outputs("score")) == {
        "scores.json",
        "scores.csv",
        "block_order.csv",
        "calibration.json",
        "orders/ppl.csv",
    }


RANK = """
import sys
from pathlib import Path
from pipeline.config import load_config
from pipeline.launch import find_place, take_place
from pipeline.world import World
place = find_place()
take_place(place)
from pipeline.run import Run
from pipeline.stages import score
world = World.join(place)
score.work(load_config(sys.argv[1], sys.argv[3:]), Run(Path(sys.argv[2]) / str(world.size)), world, print)
world.close()
"""


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_agree_with_one(tiny_config, tmp_path, world):
    """Real processes, by every criterion."""
    config = load_config(tiny_config, EVERY)
    alone = score_here(config, Run(tmp_path / "1"))["criteria"]
    data.work(config, Run(tmp_path / str(world)), World.join(Place()), silent)
    (tmp_path / "rank.py").write_text(RANK)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(world),
            tmp_path / "rank.py",
            tiny_config,
            tmp_path,
            *EVERY,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stage = tmp_path / str(world) / "score"
    criteria = read_json(stage / "scores.json")["criteria"]
    assert list(criteria) == list(CRITERIA)
    for name, entry in criteria.items():
        worst = max(
            abs(one - other) / abs(other) for one, other in zip(entry["scores"], alone[name]["scores"], strict=True)
        )
        assert worst < 1e-5, f"{world} processes: {name} differs by {worst} of a score"
        assert entry["order"] == alone[name]["order"], f"{world} processes give another order by {name}"
        if name == "ppl":
            assert entry == alone[name] and [len(entry["windows"][n]["scores"]) for n in ("3", "2")] == [6, 7]
        for key in ("sequence_losses", "sequence_scores"):
            if key in entry:
                mine, theirs = torch.tensor(entry[key]), torch.tensor(alone[name][key])
                assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6), f"{name}: {key} of other sequences"
    drawn = (stage / "calibration.json").read_bytes()
    assert drawn == (tmp_path / "1" / "score" / "calibration.json").read_bytes(), f"{world} drew other sequences"
    assert len(list((stage / "progress").glob("batch-*.json"))) == 6


def test_block_major_gives_the_same_scores(tiny_config, tmp_path):
    wanted = [name for name in CRITERIA if name not in ("linear", "taylor")]
    overrides = [*OVERRIDES, f"score.criteria=[{', '.join(wanted)}]", "score.micro_batch=4"]
    whole = score_here(load_config(tiny_config, overrides), Run(tmp_path / "batch"))
    streamed = score_here(load_config(tiny_config, [*overrides, "score.loop=block-major"]), Run(tmp_path / "block"))
    assert streamed["criteria"] == whole["criteria"], "streaming the blocks changed a score"
    with pytest.raises(RegrowError, match=r"score\.criteria taylor and score\.ppl_n: needs the whole model on the"):
        score_here(
            load_config(
                tiny_config, [*OVERRIDES, "score.loop=block-major", "score.criteria=[ppl, taylor]", "score.ppl_n=[2]"]
            ),
            Run(tmp_path / "taylor"),
        )


def test_a_finished_criterion_is_not_computed_again(tiny_config, tmp_path):
    config, run = load_config(tiny_config, EVERY), Run(tmp_path / "one")
    whole = score_here(config, run)
    progress = run.stage("score") / "progress"
    entry = read_json(progress / "taylor.json")
    write_json(progress / "taylor.json", {**entry, "norm_power": 7})
    (progress / "linear.json").unlink()
    again = score_here(config, run)
    assert again["criteria"]["taylor"]["norm_power"] == 7, "what an earlier start finished was computed again"
    assert again["criteria"]["linear"] == whole["criteria"]["linear"]
    header, first, *_ = (run.stage("score") / "scores.csv").read_text().splitlines()
    assert header.split(",") == ["block", *CRITERIA]
    assert [float(value) for value in first.split(",")] == [
        0,
        *(whole["criteria"][name]["scores"][0] for name in CRITERIA),
    ]
    for name in CRITERIA:
        order = read_block_order(run.stage("score") / "orders" / f"{name}.csv", 8)
        assert order == whole["criteria"][name]["order"]


def test_a_cut_off_sweep_goes_on_from_its_progress(config, tmp_path):
    run = Run(tmp_path / "one")
    whole = score_here(config, run)
    progress = run.stage("score") / "progress"
    files = sorted(progress.glob("batch-*.json"))
    assert len(files) == 6
    results = {
        path.name: (run.stage("score") / path.name).read_bytes()
        for path in run.stage("score").iterdir()
        if path.is_file()
    }
    for path in (files[1], files[4], *(run.stage("score") / name for name in results)):
        path.unlink()
    said: list[str] = []
    assert score_here(config, run, said) == whole
    assert any("4 of 6 sequences were scored before" in line for line in said), said
    assert "sequence 2 of 2" in said, "more was scored again than was missing"
    assert {name: (run.stage("score") / name).read_bytes() for name in results} == results, "other bytes after a resume"
    # What stands in the progress files is what counts: a resume does not compute it again.
    files[0].write_text(json.dumps({"losses": [[9.0 * 31]] * 9}))
    assert score_here(config, run)["criteria"]["ppl"]["dense_sequence_losses"][0] == 9.0


def test_a_loss_that_is_not_a_number_is_refused_and_not_kept(config, tmp_path, tiny_model):
    broken = load_model(tiny_model)
    with torch.no_grad():
        # Finite itself: what it makes is not.
        for part in (broken.model.layers[5].mlp.up_proj, broken.model.layers[5].mlp.down_proj):
            part.weight.fill_(3e38)
    broken.save_pretrained(tmp_path / "broken")
    for path in tiny_model.glob("tokenizer*"):
        (tmp_path / "broken" / path.name).write_bytes(path.read_bytes())
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "broken")})})
    run = Run(tmp_path / "one")
    with pytest.raises(RegrowError, match=r"losses without blocks \[0, 1, 2, 3, 4, 6, 7, 8\] are not numbers.*float32"):
        score_here(config, run)
    assert not list((run.stage("score")).rglob("batch-*.json")), "a useless loss would be taken up again"


def test_calibration_documents_that_are_held_out_are_counted(config, tmp_path):
    """Stage data sees no overlap with text that is not here yet; scoring has read its documents and sees it."""
    run, said = Run(tmp_path / "one"), []
    scores = score_here(config, run, said)
    assert scores["calibration"]["overlap"] == {"held_out": 0}
    assert "6 calibration documents, 0 of them held out too" in said
    origins = read_json(run.stage("score") / "calibration.json")["origins"]
    drawn = [
        next(text for index, text in read_documents(Path(origin["shard"]), "jsonl") if index == origin["document"])
        for origin in origins[:2]
    ]
    corpus, _ = read_manifest(read_json(run.stage("data") / "manifest.json"))

    def score_against(name: str) -> dict:
        kept = list_source(TextSource(str(tmp_path / name))).shards
        write_json(run.stage("data") / "manifest.json", build_manifest(corpus, kept))
        (run.stage("score") / "scores.json").unlink()
        score.work(config, run, World.join(Place()), said.append)
        return read_json(run.stage("score") / "scores.json")["calibration"]["overlap"]

    write_jsonl_zst(tmp_path / "kept" / "a.jsonl.zst", [{"text": text} for text in ["another", *drawn]])
    assert score_against("kept") == {"held_out": 2}
    write_tokenised(tmp_path / "ids" / "a.tar", [[5, 6, 1]], about={"vocabulary": 1000})
    assert score_against("ids") == {"held_out": None}, "ids cannot be compared with texts"
    assert "6 calibration documents, an unknown number of them held out too" in said
    assert not any("trained on" in line for line in said), "nobody has measured what will be trained on"


def test_more_sequences_than_documents_are_refused_before_the_stage_where_the_corpus_is_listed(
    config_of, here, refused, texts, tmp_path
):
    """Records without text count as none; what is listed under another config is refused as that."""
    (tmp_path / "few").mkdir()
    lines = [json.dumps({"text": text}) for text in texts[:6]]
    (tmp_path / "few" / "a.jsonl").write_text("\n".join([*lines, '{"text": null}', '{"text": " "}']) + "\n")
    path = config_of([tmp_path / "few"], lanes=4)
    assert here("data", path)[0] == 0
    run = Run(load_config(path).run.folder / "tiny")
    message = refused("score", path, "score.sequences=7")
    assert "score.sequences 7: the corpus has 6 documents, and each gives one sequence at most" in message
    assert not run.stage("score").exists(), "a refused stage left something behind"
    message = refused("score", path, "score.sequences=7", "data.sources.0.text_key=other")
    assert "stage data is done, but not with this config" in message
    (run.stage("data") / "manifest.json").unlink()
    assert "missing or of another size" in refused("score", path, "score.sequences=7")
