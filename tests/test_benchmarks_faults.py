"""The campaign of kills: what is drawn, what is gone on with, what is found wrong, and two kills of a real run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pipeline.files import hash_file, write_json
from tests import ROOT

#: Of seed 0: killed twice each, under ZeRO 1.
TWICE = [166, pytest.param(204, marks=pytest.mark.slow)]
SIZES = {"head": 7, "norm": 2}


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """benchmarks/faults.py and the modules that it stands on."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import faults
    from campaign import cases, chains, checks, states, table

    return SimpleNamespace(faults=faults, cases=cases, chains=chains, checks=checks, states=states, table=table)


def test_a_number_gives_one_case_and_all_phases_are_met_under_every_stage(campaign):
    drawn = [campaign.cases.draw_case(0, number) for number in range(120)]
    assert drawn[7] == campaign.cases.draw_case(0, 7) != campaign.cases.draw_case(1, 7)
    first = Counter((case.kills[0].phase, case.zero_stage) for case in drawn)
    assert len(first) == 24 and set(first.values()) == {5}, f"phases and stages are not met alike: {first}"
    kills = [kill for case in drawn for kill in case.kills]
    assert {kill.receiver for kill in kills} == set(campaign.cases.RECEIVERS)
    assert {kill.signal for kill in kills} == {"SIGKILL", *campaign.cases.SIGNALS}
    for case in drawn:
        for kill in case.kills:
            assert kill.step in campaign.cases.PHASES[kill.phase] and 0 <= kill.part < 1, kill
            if kill.receiver == "reader":
                assert case.workers and 0 < kill.step <= campaign.cases.STEPS, f"there is no reader: {case}"
        places = [kill.place for kill in case.kills if kill.step > 0]
        assert places == sorted(places), f"the second kill is not behind the first: {case}"


def test_layouts_of_a_chain_change_and_its_ends_come_behind_checkpoints(campaign):
    for number in range(40):
        links = campaign.chains.draw_chain(0, number)
        assert links == campaign.chains.draw_chain(0, number) and len(links) in (3, 4)
        assert all(before.processes != behind.processes for before, behind in pairwise(links)), links
        ends = [link.kills[-1].step for link in links[:-1]]
        assert ends == sorted(set(ends)) and min(ends) > campaign.cases.CHECKPOINT, ends
        assert [link.last for link in links] == [False] * len(ends) + [True]
        early = [
            kill.phase for place, link in enumerate(links) for kill in link.kills[: -1 if place < len(ends) else 1]
        ]
        assert set(early) <= {"opening"} and len(links[0].kills) == 1, early


def test_what_has_a_line_is_not_done_again(campaign, tmp_path):
    results = tmp_path / "cases.jsonl"
    assert campaign.faults.due(results, 0, range(3)) == [0, 1, 2]
    lines = [{"seed": 0, "number": 0}, {"seed": 1, "number": 1}]
    # The last line was being written when the campaign was ended.
    results.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"seed": 0, "num')
    assert campaign.faults.due(results, 0, range(3)) == [1, 2]


def write_run(folder: Path, steps: int) -> Path:
    """A run whose training has ended, in its smallest form."""
    train = folder / "train"
    for kind, name in (("exports", "model.safetensors"), ("checkpoints", "state")):
        place = train / kind / f"step-{steps:08d}"
        place.mkdir(parents=True)
        (place / name).write_text("bytes")
    entry = {"state": {"bytes": 5, "sha256": hash_file(place / "state")}}
    write_json(place / "COMPLETE", {"files": entry})
    line = {"tokens": 1, "loss": 2.5, "grad_norm": 1.0, "learning_rate": 0.1}
    lines = {
        "metrics": [{"step": step, **line, "seconds": 0.1 * step} for step in range(1, steps + 1)],
        "held_out": [{"step": steps, "held_out_loss": 2.0}],
        "samples": [{"step": step, "rows": [[step, 0, "hash"]]} for step in range(1, steps + 1)],
    }
    for name, records in lines.items():
        (train / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_json(train / "stage.json", {})
    return folder


def repeat_last(path: Path) -> None:
    """A step twice."""
    text = path.read_text()
    path.write_text(text + text.splitlines(keepends=True)[-1])


WRONG: dict[str, Callable[[Path, str], object]] = {
    "exports/STEP/model.safetensors has other bytes": lambda train, step: (
        train / "exports" / step / "model.safetensors"
    ).write_text("other"),
    "exports/.STEP.new/part is not in the undisturbed run": lambda train, step: (
        (train / "exports" / f".{step}.new").mkdir(),
        (train / "exports" / f".{step}.new" / "part").touch(),
    ),
    "checkpoints/STEP/state is missing": lambda train, step: (train / "checkpoints" / step / "state").unlink(),
    "STEP is the rest of a save": lambda train, step: (
        shutil.copytree(train / "checkpoints" / step, train / "checkpoints" / "step-00000002"),
        (train / "checkpoints" / "step-00000002" / "COMPLETE").unlink(),
    ),
    "held_out.jsonl has other lines": lambda train, step: (train / "held_out.jsonl").unlink(),
    "samples.jsonl has other lines": lambda train, step: repeat_last(train / "samples.jsonl"),
    "metrics.jsonl has the steps": lambda train, step: repeat_last(train / "metrics.jsonl"),
    "metrics.jsonl has other losses": lambda train, step: (train / "metrics.jsonl").write_text(
        (train / "metrics.jsonl").read_text().replace("2.5", "2.25", 1)
    ),
    "REQUEUE asks": lambda train, step: (train / "REQUEUE").touch(),
    "the stage has no record": lambda train, step: (train / "stage.json").unlink(),
}


@pytest.mark.parametrize("said", WRONG)
def test_whatever_a_kill_might_have_left_is_found(campaign, tmp_path, said):
    steps = campaign.cases.STEPS
    run, reference = (write_run(tmp_path / name, steps) for name in ("killed", "undisturbed"))
    assert not list(campaign.checks.differences(run, reference))
    WRONG[said](run / "train", f"step-{steps:08d}")
    found = list(campaign.checks.differences(run, reference))
    expected = said.replace("STEP", "step-00000002" if said.startswith("STEP") else f"step-{steps:08d}")
    assert len(found) == 1 and found[0].startswith(expected), found


def test_a_damaged_checkpoint_is_named(campaign, tmp_path):
    train = write_run(tmp_path, 3) / "train"
    assert campaign.checks.newest(train) == 3 and not list(campaign.checks.damage(train))
    (train / "checkpoints" / "step-00000003" / "state").write_text("bytez")
    assert list(campaign.checks.damage(train)) == ["step-00000003, which is complete, has state damaged or missing"]


def write_state(folder: Path, pieces: list[dict[str, tuple[int, int]]]) -> Path:
    """A checkpoint of the same state, in as many files as there are entries in ``pieces``: by parameter, offset and
    length of what a file has of it."""
    folder.mkdir()
    group = {"lr": 0.1, "parameters": SIZES}
    state = {"step": 3, "tokens": 9, "identity": {}, "lanes": {}, "optimizer": [group], "engine": {}}
    write_json(folder / "state.json", state)
    for rank, held in enumerate(pieces):
        tensors = {
            f"{kind}/{name}": torch.arange(offset, offset + length) * 0.1 + number
            for name, (offset, length) in held.items()
            for number, kind in enumerate(("master", "exp_avg", "exp_avg_sq"))
        }
        places = {name: [*place, 3] for name, place in held.items()}
        save_file(tensors, folder / f"rank-{rank:05d}.safetensors", {"fragments": json.dumps(places)})
    return folder


def test_a_state_is_the_same_in_every_layout_and_one_bit_of_it_is_seen(campaign, tmp_path):
    one = write_state(tmp_path / "one", [{"head": (0, 7), "norm": (0, 2)}])
    two = write_state(tmp_path / "two", [{"head": (0, 4)}, {"head": (4, 3), "norm": (0, 2)}])
    assert not list(campaign.states.differing_state(one, two))
    less = write_state(tmp_path / "less", [{"head": (0, 4), "norm": (0, 2)}])
    found = list(campaign.states.differing_state(one, less))
    assert "less holds 6 values of 9" in found and "master/head has other values" in found, found
    path = two / "rank-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (found,) = campaign.states.differing_state(one, two)
    assert found.endswith(" has other values"), found


def test_tables_tell_kills_by_stage_and_end_and_chains_by_link(campaign):
    kill = {"receiver": "agent", "signal": "SIGTERM", "phase": "save"}
    met = {"ended": "at once", "torn": [], "traceback": True}
    line = {"seed": 0, "number": 4, "zero_stage": 3, "wrong": []}
    good = {**line, "kills": [kill, kill], "met": [{**met, "ended": "saved"}, {**met, "ended": "passed"}]}
    bad = {**good, "kills": [kill], "met": [{**met, "torn": ["step-00000003"]}], "wrong": ["too bad"]}
    rows = list(campaign.table.table([good, bad]))
    # Kills; ZeRO 1, 2, 3; at once, saved, went on; cut short; traceback; wrong.
    assert "| agent | SIGTERM | save | 2 | 0 | 0 | 2 | 1 | 1 | 0 | 1 | 2 | 1 |" in rows, rows
    assert "2 cases, 1 kills that came too late; 1 cases with something wrong" in rows, rows
    assert rows[-1] == "- case 4 of seed 0, ZeRO 3: too bad"
    links = [
        {"processes": 2, "zero_stage": 1, "kills": [kill]},
        {"processes": 4, "zero_stage": 0, "kills": []},
    ]
    chain = {**line, "links": links, "changes": [6], "loss_difference": 2e-4}
    *_, row = campaign.table.chain_table([chain])
    words = "2 x ZeRO 1 (SIGTERM to agent in its save); from step 6 4 x ZeRO 0 (no kill)"
    assert row == f"| 0-4 | {words} | 2.0e-04 nats | exact |"


def run_campaign(folder: Path, *arguments: object) -> str:
    """What benchmarks/faults.py prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--folder", str(folder), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", TWICE)
def test_two_kills_leave_no_trace(tmp_path, case):
    said = run_campaign(tmp_path, "--only", case)
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == [case]
    assert all(len(line["met"]) == 2 for line in lines), f"a kill came too late: {lines}"
    assert "| all of them |  |  | 2 | 2 |" in said and "1 cases, 0 kills that came too late; 0 cases with" in said, said
    assert not list((tmp_path / "case").iterdir()), "what went well was kept"
    again = run_campaign(tmp_path, "--only", case)
    assert again.startswith("| Receiver") and said.endswith(again), f"something was done again: {again}"
