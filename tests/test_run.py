"""The run folder under crashes, full disks and second starts; what counts as a result, and what as a difference."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import RegrowError
from pipeline.files import hash_file, read_json, require_writable, write_atomic, write_json
from pipeline.run import Run
from tests.programs import python
from tests.records import stage_record


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the run in tmp_path/demo, and a child of its own that outlives it."""
    process = python(
        """
import pathlib, subprocess, sys, time
from pipeline.run import Run
with Run(pathlib.Path(sys.argv[1])).lock():
    child = subprocess.Popen(["sleep", "30"])
    print(child.pid, flush=True)
    time.sleep(30)
""",
        tmp_path / "demo",
    )
    child = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.communicate()


def test_a_second_holder_is_refused_by_host_and_pid_until_the_first_is_killed(holder, tmp_path):
    run = Run(tmp_path / "demo")
    name = f"host {socket.gethostname()} pid {holder.pid}"
    with pytest.raises(RegrowError, match=f"run demo is in use by {name};"), run.lock():
        pytest.fail("two processes hold one run")
    assert run.holder() == name
    holder.kill()
    holder.wait()
    assert run.holder() is None, "the lock outlived a kill -9 of its holder"
    with run.lock():
        assert run.holder() == f"host {socket.gethostname()} pid {os.getpid()}"
    assert run.holder() is None
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    assert run.holder() is None, "the lock was kept after an error"
    assert (run.folder / ".lock").read_text() == "", "whoever looks takes it for one that was killed"


#: Answers flock with an error of the kernel, as a file system without locks does, to this process alone: a filter of
#: system calls (seccomp). In a child for each error, since it cannot be taken back.
WITHOUT_LOCKS = """
import ctypes, errno, os, pathlib, platform, struct, sys
from pipeline.data.remote.locks import locked
from pipeline.data.corpus.tokenising import _alone
from pipeline.errors import RegrowError
from pipeline.run import Run
from pipeline.commands.status import look_at

NUMBER = {"x86_64": 73, "aarch64": 32}[platform.machine()]
folder = pathlib.Path(sys.argv[1])

def refuse_flock(code):
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, NUMBER), (0x06, 0, 0, 0x00050000 | code), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    about = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, about) == 0, os.strerror(ctypes.get_errno())

def told(call):
    try:
        return call()
    except RegrowError as error:
        return error

for code in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
    if os.fork():
        os.wait()
        continue
    refuse_flock(code)
    run = Run(folder / "run")
    (folder / "copy").touch()
    for call in (run.lock().__enter__, run.require_free, _alone(folder / "ids").__enter__,
                 lambda: locked(folder / "copy", "rb", 2)):
        print("REFUSED", told(call), flush=True)
    (run.folder / "config.yaml").touch()
    (run.folder / ".lock").write_text("host another pid 7")
    print("STATUS", look_at(run.folder).text.splitlines()[1], flush=True)
    os._exit(0)
"""


def test_a_file_system_without_locks_is_not_a_run_in_use(tmp_path):
    out, _ = python(WITHOUT_LOCKS, tmp_path).communicate(timeout=120)
    lines = out.splitlines()
    assert len(lines) == 15, out
    assert all("this file system has no file locks (" in line for line in lines), out
    assert "in use" not in out and "another command" not in out, out
    assert sum(line.startswith("STATUS   whether a command works in it cannot be told: ") for line in lines) == 3, out


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_left(tmp_path):
    (tmp_path / "file").touch()
    long = "n" * 300
    for folder, reason in (
        (tmp_path / "file", "Not a directory"),
        (tmp_path / "file" / "run", f"{tmp_path}/file cannot be written"),
        (tmp_path / long, "File name too long"),
        (tmp_path / "new" / long, "File name too long"),
        (Path("/sys/regrow"), "cannot be written"),
    ):
        with pytest.raises(RegrowError, match=r"cannot be written \(.*; set run\.folder to another place") as refusal:
            require_writable(folder, "run.folder")
        assert reason in str(refusal.value)
    require_writable(tmp_path / "new" / "run", "run.folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "something was left behind"


def test_a_stage_is_complete_with_its_record_and_is_named_when_it_is_missing(tmp_path):
    run = Run(tmp_path / "demo")
    assert run.record("data") is None
    with pytest.raises(RegrowError, match=r"stage data is not done yet; first run: regrow run c\.yaml .*--until data"):
        run.require("data", "c.yaml")
    run.finish("data", stage_record(seconds=2))
    assert run.require("data", "c.yaml") == run.record("data") == stage_record(seconds=2)
    run.log("one")
    run.log("two")
    assert [line.split(" ", 2)[2] for line in (run.folder / "log.txt").read_text().splitlines()] == ["one", "two"]


def test_a_stage_s_outputs_are_its_results_alone(tmp_path):
    run = Run(tmp_path)
    for name in (
        "stage.json",
        "progress/started.json",
        "checkpoints/step-1/COMPLETE",
        "metrics.discarded.jsonl",
        "samples.discarded.jsonl",
        ".scores.json.77.new",
        "model/config.json",
        "scores.json",
        "tasks/sums.yaml",
        "tasks/__pycache__/sums_data.pyc",
        "tasks/items.json",
    ):
        write_atomic(run.stage("x") / name, name)
    outputs = run.outputs("x")
    assert list(outputs) == ["model/config.json", "scores.json", "tasks/items.json"]
    assert outputs["scores.json"] == {"bytes": 11, "sha256": hash_file(run.stage("x") / "scores.json")}


def test_redone_stages_are_set_aside_and_nothing_is_deleted(tmp_path):
    run = Run(tmp_path)
    for number in (1, 2):
        for stage in ("data", "score", "prune"):
            write_json(run.stage(stage) / "stage.json", stage_record(seconds=number))
        moved = run.set_aside(["score", "prune", "train"])
        assert moved == [tmp_path / "aside" / f"00{number}" / stage for stage in ("score", "prune")]
        assert [read_json(folder / "stage.json")["seconds"] for folder in moved] == [number, number]
        assert run.record("score") is None and run.record("data")["seconds"] == number
    assert run.set_aside(["score"]) == [] and len(list((tmp_path / "aside").iterdir())) == 2


def test_what_belongs_together_is_set_aside_in_one_place_unless_that_is_taken(tmp_path):
    run = Run(tmp_path)
    write_atomic(tmp_path / "config.yaml", "of then")
    for stage in ("evaluate", "report"):
        write_json(run.stage(stage) / "stage.json", stage)
    place = run.new_aside()
    assert place == tmp_path / "aside" / "001" and (place / "config.yaml").read_text() == "of then"
    assert run.set_aside(["evaluate"], place) == [place / "evaluate"]
    assert run.set_aside(["report"], place) == [place / "report"]
    write_json(run.stage("report") / "stage.json", "another")
    assert run.set_aside(["report"], place) == [tmp_path / "aside" / "002" / "report"]
    assert read_json(place / "report" / "stage.json") == "report"


@pytest.mark.parametrize(("redone", "stay"), [(["evaluate", "report"], True), (["train", "evaluate"], False)])
def test_what_speaks_of_another_stage_stays_unless_that_is_redone(tmp_path, redone, stay):
    run = Run(tmp_path)
    for name in ("stage.json", "results.json", "curve.jsonl", "curve/step-1.lock", "tasks/items.json"):
        write_atomic(run.stage("evaluate") / name, name)
    assert not [name for name in run.outputs("evaluate") if name.startswith("curve")]
    assert run.set_aside(redone) == [tmp_path / "aside" / "001" / "evaluate"]
    left = sorted(path.name for path in run.stage("evaluate").glob("*"))
    assert left == (["curve", "curve.jsonl"] if stay else [])
    moved = sorted(path.name for path in (tmp_path / "aside" / "001" / "evaluate").iterdir())
    assert moved == sorted({"results.json", "stage.json", "tasks", *([] if stay else ["curve", "curve.jsonl"])})
    assert run.set_aside(["evaluate"]) == [], "nothing but what stays was there"


def test_what_was_set_aside_comes_back_beside_what_stays(tmp_path):
    run = Run(tmp_path)
    write_atomic(tmp_path / "config.yaml", "then")
    for name in ("stage.json", "curve.jsonl"):
        write_atomic(run.stage("evaluate") / name, name)
    run.set_aside(["evaluate", "report"])
    write_atomic(tmp_path / "config.yaml", "now")
    (aside,) = run.asides()
    assert (aside / "config.yaml").read_text() == "then"
    write_atomic(aside / "evaluate" / "curve.jsonl", "another")
    with pytest.raises(RegrowError, match=r"evaluate/curve\.jsonl would take the place of .*aside/001/evaluate/curve"):
        run.bring_back(aside, ["evaluate"])
    (aside / "evaluate" / "curve.jsonl").unlink()
    write_atomic(aside / "report" / "index.html", "page")
    run.bring_back(aside, ["evaluate"])
    assert sorted(path.name for path in run.stage("evaluate").iterdir()) == ["curve.jsonl", "stage.json"]
    assert run.asides() == [aside], "the report is still in it"
    run.bring_back(aside, ["report"])
    assert (run.stage("report") / "index.html").read_text() == "page" and run.asides() == []


def test_hashes_are_remembered_until_a_file_changes(tmp_path):
    run, path = Run(tmp_path / "run"), tmp_path / "weights"
    path.write_bytes(b"one")
    first = run.hash_of(path)
    store = run.folder / "hashes.json"
    assert first == hash_file(path) and run.hash_of(path) == first
    # The memory is used: what it says is believed as long as size and time stand.
    store.write_text(json.dumps({key: "remembered" for key in json.loads(store.read_text())}))
    run = Run(tmp_path / "run")
    assert run.hash_of(path) == "remembered"
    stamp = path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp + 1, stamp + 1))
    assert run.hash_of(path) == hash_file(path) != first, "a change of the same size was not noticed"
