"""A teacher that is asked ahead: once, whatever happens, for all runs that differ in no more than the student."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.files import hash_json, read_json
from pipeline.inputs import Inputs
from pipeline.life import Teller
from pipeline.origins import checked_origin
from pipeline.run import Run
from pipeline.stages import sampling
from pipeline.stages.sampling import answer_bytes, open_answers
from pipeline.stages.teaching import find_teacher, teacher_bytes
from pipeline.stopping import STOPPED
from pipeline.training.answers import AnswerStore
from pipeline.world import ALONE
from tests.command import Regrow
from tests.stages.family import Family
from tests.training.asked import contents

#: Two blocks of answers of 12 lanes, in three steps.
KEYS = (
    "train.tokens=24576",
    "train.global_batch=128",
    "train.checkpoint_every=3",
    "train.evaluate_every=3",
    "train.objective=both",
    "train.distill.samples=20",
)
quiet = Teller(lambda line: None, lambda line: None)


def opened(path, run, *overrides: str, say: Teller = quiet) -> AnswerStore | None:
    """The answers of a run by one process."""
    config, run = load_config(path, [*KEYS, *overrides]), Run(run)
    text = Inputs(config, run, run.stage("prune") / "model")
    return open_answers(config, run, text, checked_origin(config, run, text.encoder), ALONE, say)


def wait_for_a_block(command: Regrow, ends: Path) -> None:
    """Wait until the first block of answers of each lane is there."""
    begin = time.monotonic()
    while len(list(ends.glob("*/lane-*/00000000.safetensors"))) < 12:
        assert time.monotonic() - begin < 120 and command.process.poll() is None, "the teacher is not asked"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_in_the_pass_and_learnt_from(copy_until, lengthen, tmp_path, regrow, monkeypatch):
    """Two processes are killed behind a block and started again; one alone has the same bytes, and another student
    of the same rows finds all there, without the teacher."""
    path, run, ends = lengthen(tmp_path), copy_until("prune", tmp_path), tmp_path / "answers"
    more = (*KEYS, "train.processes=2", f"train.distill.store={ends}")
    command = regrow("train", path, *more)
    wait_for_a_block(command, ends)
    command.kill()
    command.wait()
    (folder,) = (each for each in ends.iterdir())
    first = contents(folder)
    assert "step 1 of" not in command.output
    assert not list(folder.glob("lane-*/00000001.safetensors")), "the pass had ended before: this shows nothing"
    command = regrow("train", path, *more)
    assert command.wait() == 0, command.output
    assert "asked about 192 rows" in command.output, "the first block was asked about again"
    whole = contents(folder)
    assert first.items() <= whole.items() and len(whole) == 24
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(line["divergence"] > 0 for line in lines)
    result = read_json(run / "train" / "stage.json")["result"]
    assert (result["teacher_flops_per_token"], result["answers"]) == (0, str(folder))

    alone = opened(path, run, f"train.distill.store={tmp_path / 'alone'}")
    assert alone is not None and contents(alone.folder) == whole, "one process alone writes other bytes"

    monkeypatch.setattr(sampling, "load_teacher", lambda *_: pytest.fail("the teacher is loaded"))
    for same in ("train.learning_rate=2e-3", "train.init=random", "train.distill.weight=0.9", "train.micro_batch=1"):
        found = opened(path, run, f"train.distill.store={ends}", same)
        assert found is not None and found.folder == folder, same
    assert opened(path, run, f"train.distill.store={ends}", "train.tokens=8192") is not None, "fewer rows"


@pytest.mark.slow
def test_asked_to_stop_in_the_pass_it_keeps_the_blocks_that_are_whole(copy_until, lengthen, tmp_path, regrow):
    path, run, ends = lengthen(tmp_path), copy_until("prune", tmp_path), tmp_path / "answers"
    more = (*KEYS, "train.processes=2", f"train.distill.store={ends}")
    command = regrow("train", path, *more)
    wait_for_a_block(command, ends)
    (rank,) = Family(command).named("regrow-rank-0")
    rank.send_signal(signal.SIGTERM)
    assert command.wait() == STOPPED, command.output
    assert (run / "train" / "REQUEUE").exists() and "step 1 of" not in command.output
    (folder,) = ends.iterdir()
    first = {path: path.stat().st_mtime_ns for path in folder.glob("lane-*/00000000.safetensors")}
    command = regrow("train", path, *more)
    assert command.wait() == 0, command.output
    assert {path: path.stat().st_mtime_ns for path in first} == first, "what was there was written again"
    assert "asked about 192 rows" in command.output, "the first block was asked about again"


def test_what_makes_other_answers_has_another_folder(copy_until, lengthen, tmp_path, reference, monkeypatch):
    path, run, seen = lengthen(tmp_path), copy_until("prune", tmp_path), set()
    monkeypatch.setattr(AnswerStore, "missing", lambda store, rows: [])
    for other in (
        "train.seed=0",
        "train.seed=1",
        "train.distill.samples=21",
        "train.distill.temperature=2",
        f"train.distill.teacher={reference}",
        "data.attention=within",
        "data.seed=3",
        "model.dtype=float32",
    ):
        found = opened(path, run, f"train.distill.store={tmp_path / 'answers'}", other)
        assert found is not None and found.folder not in seen, other
        assert found.folder.name == hash_json(read_json(found.folder / "identity.json"))[:16]
        seen.add(found.folder)
    for none in ("train.distill.samples=null", "train.objective=lm"):
        assert opened(path, run, f"train.distill.store={tmp_path / 'answers'}", none) is None


def test_only_one_command_asks(copy_until, lengthen, tmp_path, monkeypatch):
    path, run, place = lengthen(tmp_path), copy_until("prune", tmp_path), f"train.distill.store={tmp_path / 'answers'}"

    def meanwhile(*_) -> None:
        with pytest.raises(RegrowError, match="another command asks the teacher into it"):
            opened(path, run, place)

    monkeypatch.setattr(sampling, "_ask", meanwhile)
    assert opened(path, run, place) is not None


def test_a_full_disk_is_met_before_the_teacher_is_loaded(copy_until, lengthen, tmp_path, monkeypatch):
    path, run = lengthen(tmp_path), copy_until("prune", tmp_path)
    monkeypatch.setattr(sampling, "load_teacher", lambda *_: pytest.fail("the teacher is loaded"))
    monkeypatch.setattr(sampling, "bytes_per_token", lambda *_: 1e15)
    with pytest.raises(RegrowError, match="no space for the teacher's answers"):
        opened(path, run, f"train.distill.store={tmp_path / 'answers'}")


def test_what_it_takes(tiny_config):
    config = load_config(tiny_config, [*KEYS, "train.distill.store=answers"])
    folder = find_teacher(config)
    assert folder is not None and 20 < answer_bytes(config, folder) < 40
    assert teacher_bytes(config, folder, 1) == 0, "it does not stand beside the student"
