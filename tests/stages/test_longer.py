"""More tokens for a training that is done: the bytes of a run that had asked at once, or a reason and ways out; and
what there was is never lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.plan import plan
from pipeline.config import Config, load_config
from pipeline.errors import RegrowError
from pipeline.files import hash_json, read_json, write_json
from pipeline.run import Run
from pipeline.stages.curve import claim
from pipeline.stages.longer import Start, earlier_ends, find_start, lengthens, reopen_training, would_go_on
from pipeline.stages.standing import is_due
from pipeline.stages.train import STAGE
from tests import ROOT
from tests.records import stage_record

NAMES = ("short", "long", "once")
COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")
CONSTANT = ("train.schedule=constant", "train.log_samples=true")
WSD = ("train.schedule=wsd", "train.decay=0.5", "train.save=blocking", "train.export_every=3")


def asked(steps: int, *keys: str) -> list[str]:
    """A command that trains so many steps of 256 tokens."""
    return ["train", "old.yaml", f"train.tokens={256 * steps}", *keys]


@pytest.fixture(scope="session")
def ended(once: Callable[..., Path]) -> Path:
    """The folder of a config, old.yaml, and of runs that were done but for their training. Not to be changed.

    Of a constant rate, and of WSD (``wsd-``), ``short`` has fewer steps; ``long`` had as many, was asked for more, was
    killed on the way, and started again; ``once`` had asked at once.
    """

    def make(folder: Path) -> None:
        old, runs = folder / "old", folder / "old" / "runs"
        shutil.copytree(Path(__file__).parent / "887a583", old)
        shutil.rmtree(runs / "done" / "train")
        commands: list[list[Any]] = []
        for prefix, keys, few, more, place in (("", CONSTANT, 3, 5, "unfinish"), ("wsd-", WSD, 4, 6, 5)):
            for name in NAMES:
                shutil.copytree(runs / "done", runs / f"{prefix}{name}")
            curve = runs / f"{prefix}long" / "evaluate" / "curve.jsonl"
            curve.write_text("".join(f'{{"step": {step}}}\n' for step in (2, 3, 4)))
            short, long, whole = ((*keys, "train.micro_batch=8", f"run.name={prefix}{name}") for name in NAMES)
            commands += [[None, *asked(few, *short)], [None, *asked(few, *long)]]
            commands += [[place, *asked(more, *long)], [None, *asked(more, *long)], [None, *asked(more, *whole)]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.stages.forking"],
            cwd=old,
            env=environment,
            input=json.dumps(commands),
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == str([0, 0, 9, 0, 0] * 2), done.stderr

    return once("ended", make) / "old"


def results(run: Run) -> dict[str, Any]:
    """The bytes of all that training made, and of metrics.jsonl what does not tell the time."""
    folder = run.stage("train")
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in run.results("train")}
    lines = map(json.loads, found["metrics.jsonl"].splitlines())
    return {**found, "metrics.jsonl": [[line[name] for name in COLUMNS] for line in lines]}


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_constant_rate_goes_on_to_the_bytes_of_a_run_that_asked_at_once(ended):
    """Three steps, then five; killed when the record had just gone."""
    short, long, whole = (Run(ended / "runs" / name) for name in NAMES)
    kept, folder, log = Run(long.folder / "aside" / "001"), long.stage("train"), (long.folder / "log.txt").read_text()
    assert results(long) == results(whole) and results(kept) == results(short)
    assert log.count("goes on from step") == 0, "killed before it was said"
    assert log.count("train: resuming at step") == 1 and "train: resuming at step 3 of 5" in log
    assert [path.name for path in (folder / "exports").iterdir()] == ["step-00000005"], "only the last one is exported"
    assert steps_in(kept.stage("train") / "held_out.jsonl") == [0, 2, 3]
    assert steps_in(folder / "held_out.discarded.jsonl") == [3], "an evaluation that the longer run does not make"
    record, before = long.record("train"), kept.record("train")
    lengthened = [{"steps": 3, "tokens": 768, "finished": before["finished"], "aside": "aside/001"}]
    assert record["result"]["lengthened"] == lengthened == earlier_ends(long) and earlier_ends(whole) == []
    assert before["outputs"] == kept.outputs("train") and record["outputs"] == long.outputs("train")
    assert "before" not in record, "what was made of the shorter one would stand"
    assert all(kept.record(stage) and not long.record(stage) for stage in ("evaluate", "report"))
    assert steps_in(long.stage("evaluate") / "curve.jsonl") == [2, 3, 4], "they are of steps that stay"


def test_wsd_goes_on_from_before_its_decay_to_the_bytes_of_a_run_that_asked_at_once(ended):
    """Of four steps the last two fell, of six the last three; killed behind the steps that were done again."""
    short, long, whole = (Run(ended / "runs" / f"wsd-{name}") for name in NAMES)
    kept, folder, log = Run(long.folder / "aside" / "001"), long.stage("train"), (long.folder / "log.txt").read_text()
    assert results(long) == results(whole) and results(kept) == results(short)
    assert "goes on from step 2 to step 6; steps 3 to 4 are done again; what there was" in log
    assert "train: resuming at step 2 of 6" in log and "train: resuming at step 4 of 6" in log
    third = "exports/step-00000003/model.safetensors"
    assert results(short)[third] != results(long)[third], "of a step at another rate"
    checkpoints = sorted(path.name for path in (kept.stage("train") / "checkpoints").iterdir())
    assert checkpoints == ["step-00000002", "step-00000004"], "that it went on from, and that behind it"
    curve = long.stage("evaluate") / "curve.jsonl"
    assert steps_in(curve) == [2] and steps_in(curve.with_suffix(".discarded.jsonl")) == [3, 4]
    assert steps_in(folder / "metrics.discarded.jsonl") == [3, 4]


def test_what_cannot_go_on_is_refused_and_stays(ended, tmp_path, monkeypatch, refused):
    shutil.copytree(ended, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    run = Run(Path("runs/once"))
    before, keys = results(run), (*CONSTANT, "run.name=once")
    message = refused(*asked(9, "train.schedule=cosine", "run.name=once"))
    assert "done with 5 steps (train.tokens 1,280, constant), and cannot go on to 9 (2,304, cosine): its" in message
    assert "train.tokens: was 1280, is 1024\nChange it back" in refused(*asked(4, *keys))
    assert "train.weight_decay: was 0.1, is 0.2" in refused(*asked(9, *keys, "train.weight_decay=0.2"))
    message = refused("evaluate", *asked(9, *keys)[1:])
    assert "stage train is done, but not with this config, and may go on with it (regrow train):" in message
    assert results(run) == before and run.record("report") and not (run.folder / "aside").exists()
    notes = plan(load_config("old.yaml", [*asked(9)[2:], *keys]))["notes"]
    assert "train is done, and goes on from step 5 to step 9; the figures here are of all steps" in notes


def test_the_shorter_one_is_had_back_whole(ended, tmp_path, monkeypatch, here):
    shutil.copytree(ended, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    run, longer = Run(Path("runs/wsd-long")), results(Run(Path("runs/wsd-once")))
    kept = Run(run.folder / "aside" / "001")
    for stage in ("evaluate", "report"):
        # As if it had been made of that training.
        record = kept.record(stage)
        made_of = {name: kept.record(name) or run.record(name) for name in record["fingerprint"]["upstream"]}
        record["fingerprint"]["upstream"] = {name: hash_json(made["outputs"]) for name, made in made_of.items()}
        kept.finish(stage, record)
    assert here("restore", "runs/wsd-long", "001")[0] == 0
    assert results(run) == results(Run(Path("runs/wsd-short")))
    assert all(run.record(stage) for stage in ("train", "evaluate", "report"))
    set_aside = Run(run.folder / "aside" / "002")
    assert results(set_aside) == longer and set_aside.record("train")["result"]["lengthened"]
    # What it can go on from came back with it.
    notes = would_go_on(load_config("old.yaml", [*asked(6)[2:], *WSD, "run.name=wsd-long"]))
    assert len(notes) == 1 and "goes on from step 2 to step 6" in notes[0], notes


@pytest.fixture
def trained(tiny_config: Path, tmp_path: Path) -> Callable[..., tuple[Run, dict[str, Any], Callable[..., Config]]]:
    """``trained(steps, checkpoints, *keys)``: what a finished training left that could go on, without its weights: its
    run, its record, and ``longer(steps, *keys)``, the config with other steps."""

    def make(steps: int, checkpoints: tuple[int, ...], *keys: str) -> Any:
        def config(steps: int, *more: str) -> Config:
            return load_config(tiny_config, [f"train.tokens={512 * steps}", *keys, *more])

        run, values = Run(config(steps).run_folder), config(steps).read_by("train")
        for step in checkpoints:
            folder = run.stage("train") / "checkpoints" / f"step-{step:08d}"
            folder.mkdir(parents=True)
            (folder / "state.json").write_text("{}")
            write_json(folder / "COMPLETE", {"step": step, "files": {"state.json": {"bytes": 2}}})
        record = stage_record(
            fingerprint={"config": values, "format": STAGE.format},
            result={"steps": steps, "tokens": 512 * steps, "export": f"train/exports/step-{steps:08d}"},
            finished="then",
        )
        run.stage("train").mkdir(exist_ok=True)
        run.finish("train", record)
        return run, record, config

    return make


def reason(trained: Any, steps: int, *keys: str) -> str:
    run, record, longer = trained
    with pytest.raises(RegrowError) as refused:
        find_start(longer(steps, *keys), run, record)
    assert str(refused.value).count("\n") == 1 and f"run.from=tiny train.init={run.folder} " in str(refused.value)
    assert would_go_on(longer(steps, *keys)) == [str(refused.value).replace("\n", ". ")]
    return str(refused.value)


def test_where_a_schedule_allows_it_to_go_on(trained):
    run, record, longer = trained(40, (10, 30, 40), "train.schedule=wsd")
    # Step 33 is the first that fell.
    assert find_start(longer(80), run, record) == Start(30, 40)
    assert find_start(longer(40, "train.tokens=20480"), run, record) == Start(40, 40)
    assert Start(40, 40).told(80) == "goes on from step 40 to step 80"
    assert would_go_on(longer(40)) == []
    config = longer(80)
    assert all(is_due(stage, config, run) for stage in ("train", "evaluate", "report"))
    assert not is_due("train", longer(40), run)
    write_json(run.stage("evaluate") / "stage.json", stage_record(fingerprint={"config": config.read_by("evaluate")}))
    assert is_due("evaluate", config, run) and not is_due("evaluate", longer(40), run)
    assert is_due("evaluate", longer(80, "train.clip=2"), run) is False, "that is another training"


def test_a_constant_rate_may_begin_to_fall(trained):
    run, record, longer = trained(40, (40,), "train.schedule=constant")
    assert find_start(longer(50, "train.schedule=wsd"), run, record) == Start(40, 40)
    assert "step 41" not in reason((run, record, longer), 45, "train.schedule=wsd"), "37 of 45 steps stay"
    assert not lengthens("train", longer(40).read_by("train"), longer(80, "train.clip=2").read_by("train"))
    assert not lengthens("train", longer(40).read_by("train"), longer(39).read_by("train"))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_falls_all_along_is_refused_with_its_rates(trained, schedule):
    # A checkpoint of the warm-up could be gone on from: nearly all would be done again.
    done = trained(40, (1, 40), f"train.schedule={schedule}")
    said = reason(done, 80)
    assert f"done with 40 steps (train.tokens 20,480, {schedule}), and cannot go on to 80 (40,960, {schedule})" in said
    assert "its rates hang on the number of steps: step 2 had 0.0009" in said
    assert "Either go back to train.tokens=20480, or train its export on, with a schedule of its own" in said


def test_other_refusals_say_what_can_be_done(trained):
    constant = trained(100, (100,), "train.schedule=constant")
    assert "the warm-up had 1 steps, and would have 2\nEither add train.warmup_steps=1, or go" in reason(constant, 200)
    assert "the rates are others: step 1 had 0.001, and would have 0.002" in reason(
        constant, 101, "train.learning_rate=2e-3", "train.warmup_steps=1"
    )
    run, record, longer = constant
    old = {**record, "fingerprint": {**record["fingerprint"], "format": STAGE.format - 1}}
    with pytest.raises(RegrowError, match="another version of regrow trained it"):
        find_start(longer(101), run, old)
    (run.stage("train") / "checkpoints" / "step-00000100" / "state.json").write_text("{")
    assert "step-00000100/state.json is missing, or of another size" in reason(constant, 150, "train.warmup_steps=1")
    shutil.rmtree(run.stage("train") / "checkpoints")
    taken = (run, {**record, "taken": "runs/other"}, longer)
    run.finish("train", taken[1])
    said = reason(taken, 150, "train.warmup_steps=1")
    assert "it needs a checkpoint, and of those in " in said
    assert "none is left; it was taken from runs/other, which may go on itself" in said


def test_wsd_without_a_checkpoint_before_its_decay_is_refused(trained):
    said = reason(trained(40, (35, 40), "train.schedule=wsd"), 80)
    assert "it needs a checkpoint of step 32 or before (step 33 had 0.0008875, and would have 0.001)" in said
    assert "the oldest is step-00000035 (train.keep_every keeps more)" in said


def test_a_run_that_follows_is_named_and_an_export_that_is_judged_is_waited_for(trained, tmp_path):
    run, record, longer = trained(40, (40,), "train.schedule=constant")
    (run.stage("evaluate")).mkdir()
    other = {"config": {"data.after": str(run.folder)}}
    write_json(tmp_path / "runs" / "other" / "train" / "progress" / "started.json", other)
    said: list[str] = []
    with claim(run, "step-00000040"), pytest.raises(RegrowError, match="is being judged by"):
        reopen_training(longer(80, "train.warmup_steps=1"), run, record, {}, said.append)
    assert run.record("train") == record and not (run.folder / "aside").exists()
    reopen_training(longer(80, "train.warmup_steps=1"), run, record, {}, said.append)
    assert said[1:] == [f"run other goes on from this one, and was made of what is in {run.folder / 'aside' / '001'}"]


def test_killed_before_its_record_goes_it_is_done_as_it_was_and_kept_once(trained, monkeypatch):
    run, record, longer = trained(40, (30, 40), "train.schedule=wsd")
    (run.stage("train") / "metrics.jsonl").write_text('{"step": 40}\n')
    card = run.stage("train") / "exports" / "step-00000040" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("written by stage report")
    (run.stage("report")).mkdir()
    (run.stage("report") / "index.html").touch()
    (run.folder / ".train.kept").mkdir()
    (run.folder / ".train.kept" / "torn").touch()
    begun, said = {"config": longer(80).read_by("train")}, []
    with monkeypatch.context() as patched:
        patched.setattr(Run, "unfinish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reopen_training(longer(80), run, record, begun, said.append)
    assert run.record("train") == record and said == []
    reopen_training(longer(80), run, record, begun, said.append)
    assert run.record("train") is None and read_json(run.stage("train") / "progress" / "started.json") == begun
    kept = run.folder / "aside" / "001"
    assert [path.name for path in (run.folder / "aside").iterdir()] == ["001"]
    assert sorted(path.name for path in (kept / "train").iterdir()) == [
        "checkpoints",
        "exports",
        "metrics.jsonl",
        "stage.json",
    ]
    assert (kept / card.relative_to(run.folder)).samefile(card)
    assert (kept / "report" / "index.html").exists() and not run.stage("report").exists()
    assert not (kept / "train" / "metrics.jsonl").samefile(run.stage("train") / "metrics.jsonl")
    assert said == [
        "goes on from step 30 to step 80; steps 31 to 40 are done again; "
        f"what there was, and what was made of it, is in {kept}"
    ]
