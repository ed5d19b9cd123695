"""benchmarks/gpu.sh: what it starts, stops and leaves out, what it says of it; and, marked slow, all of it in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import ROOT

SCRIPTS = {
    "shows.py": """
        import json, sys
        print('{"an earlier line": "of a log"}')
        print(json.dumps({"hardware": "a chip", "speed": 2.5, "options": sys.argv[1:]}))
        print("| Speed |"); print("| --- |"); print("| 2.5 |")
        """,
    "fails.py": """
        import json, sys
        print(json.dumps({"hardware": "a chip", "speed": 1.0}))
        print("| Speed |"); print("| --- |"); print("| 1.0 |")
        sys.exit(3)
        """,
    "silent.py": "",
    # Its child takes a session of its own, as launchers' workers do.
    "hangs.py": """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        print("child", child.pid, flush=True)
        time.sleep(60)
        """,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project whose benchmarks are the scripts above."""
    (tmp_path / "benchmarks").mkdir()
    for name, text in SCRIPTS.items():
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        (tmp_path / "benchmarks" / name).write_text("\n".join(lines))
    return tmp_path


def item(gpu: Any, name: str, seconds: float = 5, **options: Any) -> Any:
    full, quick = (gpu.Call(seconds, (way,)) for way in ("full", "quick"))
    return gpu.Item(name, f"{name}.py", lambda figures: f"{figures['speed']} of something", full, quick, **options)


def test_a_failure_and_a_hang_do_not_keep_the_next_from_its_turn(gpu, folder, capsys) -> None:
    items = [item(gpu, "fails"), item(gpu, "silent"), item(gpu, "hangs", seconds=0.5), item(gpu, "shows")]
    begin = time.monotonic()
    outcomes = list(gpu.measure(items, minutes=1, root=folder))
    seconds = time.monotonic() - begin
    assert [outcome.status.split(" after")[0] for outcome in outcomes] == [
        "FAILED: exit status 3",
        "FAILED: printed no figures",
        "FAILED: stopped",
        "ok",
    ], outcomes
    assert [outcome.failed for outcome in outcomes] == [True, True, True, False]
    assert seconds < 20, f"what hangs was to be stopped after 1 s, all took {seconds:.0f} s"
    printed = capsys.readouterr().out
    child = int(printed.split("child ")[1].split()[0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, (
        f"the process {child} that the stopped item had started is still running"
    )
    assert outcomes[3].figures["options"] == ["full"] and outcomes[3].row == ("| Speed |", "| --- |", "| 2.5 |")


def test_what_would_not_end_in_time_is_left_out_and_named(gpu, folder) -> None:
    items = [
        item(gpu, "shows"),
        item(gpu, "silent", seconds=100),
        item(gpu, "hangs", seconds=50),
        item(gpu, "fails", lacking=lambda root: "no assets"),
    ]
    outcomes = list(gpu.measure(items, minutes=0.2, root=folder))
    assert [outcome.status.split(":")[0] for outcome in outcomes] == ["ok", "left out", "left out", "left out"], (
        outcomes
    )
    assert "no assets" in outcomes[3].status and not any(outcome.failed for outcome in outcomes), outcomes
    *_, last = gpu.summary(outcomes)
    # 150 s, which is 3 whole minutes; what lacks its assets would not run then either.
    assert "about 150 s more" in last and last.endswith("gpu.sh --minutes 3 silent hangs"), last


def test_figures_of_one_item_become_options_of_another(gpu, folder) -> None:
    takes = (("--speed", "shows", "speed"), ("--other", "absent", "speed"))
    outcomes = list(gpu.measure([item(gpu, "shows"), item(gpu, "shows", takes=takes)], 1, quick=True, root=folder))
    options = [outcome.figures["options"] for outcome in outcomes]
    assert options == [["quick"], ["quick", "--speed", "2.5"]], options


def test_the_summary_repeats_rows_and_says_what_became_of_each(gpu, folder) -> None:
    outcomes = list(
        gpu.measure([item(gpu, "shows"), item(gpu, "fails"), item(gpu, "silent", seconds=99)], 1, root=folder)
    )
    lines = gpu.summary(outcomes)
    assert lines[:4] == ["shows:", "| Speed |", "| --- |", "| 2.5 |"], lines
    table = [line for line in lines if line.count("|") == 5][2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert [(name, figure) for name, _, _, figure in cells] == [
        ("shows", "2.5 of something"),
        ("fails", "1.0 of something"),
        ("silent", ""),
    ], lines
    assert cells[1][1] == "FAILED: exit status 3" and cells[2][2] == "", cells


def test_all_items_fit_into_the_default_minutes_and_name_their_scripts(gpu) -> None:
    for part in (1, 2):
        seconds = sum(item.full.seconds for item in gpu.ITEMS if item.part == part)
        assert 0 < seconds <= 6 * 60, f"bash benchmarks/gpu.sh --part {part} would leave something out"
    for each in gpu.ITEMS:
        assert (ROOT / "benchmarks" / each.script).is_file(), f"{each.name} has no script"
        earlier = [other.name for other in gpu.ITEMS[: gpu.ITEMS.index(each)]]
        assert all(name in earlier for _, name, _ in each.takes), f"{each.name} takes figures of what comes later"


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """benchmarks/gpu.sh on a machine whose GPUs are hidden."""
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=1200,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, **environment},
    )


def test_refusals_come_before_any_work() -> None:
    done = start()
    assert done.returncode == 1 and "no NVIDIA GPU here; --quick" in done.stderr, done
    assert sys.executable in done.stdout, f"it did not say which Python it uses: {done.stdout}"
    done = start("--quick", "1.5b", "13b")
    assert done.returncode == 2 and "no item '13b'; there are ceiling, 1.5b" in done.stderr, done
    done = start("--quick", PYTHON="no-such-python")
    assert done.returncode == 1 and "no no-such-python: set PYTHON" in done.stderr, done


def test_a_python_without_the_packages_is_told_what_it_lacks(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    # Without site-packages. The environment's own link would find them by where it lies.
    bare.write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} -S "$@"\n')
    bare.chmod(0o755)
    done = start("--quick", PYTHON=str(bare))
    assert done.returncode == 1 and "lacks datasets deepspeed" in done.stderr and "torch" in done.stderr, done
    assert done.stderr.count("\n") == 1, f"one line was to say it: {done.stderr}"


@pytest.mark.slow
def test_all_of_it_runs_in_small_on_a_cpu(gpu, demo: Path) -> None:
    names = [item.name for item in gpu.ITEMS]
    done = start("--quick", "--minutes", "20", *names)
    assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and '"hardware"' in line]
    by_name = dict(zip(names, found, strict=True))
    ceiling, resumed, tests, scoring = (by_name[name] for name in ("ceiling", "demo", "tests", "scoring"))
    ladder = [figures for figures in found if "tokens_per_second" in figures]
    rungs = [item.name for item in gpu.ITEMS if item.script == "throughput.py"]
    assert len(ladder) == len(rungs) > 4, "a rung of the ladder has no speed"
    assert by_name["loss"]["ways"]["ours"]["loss"] == pytest.approx(by_name["loss"]["ways"]["whole"]["loss"], rel=1e-3)
    for small in ladder:
        assert small["ceiling"] == ceiling["ceiling"] > 0, "the ceiling did not reach the throughput"
        assert small["of_ceiling"] == small["tokens_per_second"] * small["flops_per_token"] / ceiling["ceiling"]
    assert by_name["1.5b"]["compiled"] and by_name["1.5b-whole"]["whole_logits"], "a rung is not what it is named for"
    assert by_name["3.7b"]["gradient_checkpointing"] == "selective"
    assert scoring["linear"] is None and scoring["with_distances"]["seconds"] > 0
    assert resumed["same"] and resumed["export"] == resumed["resumed_export"] != {}, resumed
    assert 0 < resumed["resumed_at"] <= resumed["killed_after"] < resumed["steps"], resumed
    assert tests["skipped"] > 0 and tests["failed"] == 0, f"on a CPU the tests marked gpu skip: {tests}"
    noise = [line for line in done.stdout.splitlines() if "WARNING" in line or "it/s]" in line]
    assert not noise and not done.stderr, f"{noise}\n{done.stderr[-2000:]}"
    assert done.stdout.count("| ok |") == len(names), done.stdout[-3000:]
