"""The canonical order: the same rows in every layout, through every chain of resumes, in every format."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice

import psutil
import pytest

from pipeline.data.shards import build_manifest
from pipeline.data.stream.position import from_json, to_json
from pipeline.files import read_json, write_json
from tests import ROOT
from tests.data.corpora import ENDINGS, LANES, cursors_behind, differs, digest, stream, take, together, two_sources

#: Processes, and workers of each, whose product divides the 12 lanes.
LAYOUTS = [
    (processes, workers)
    for processes in (1, 2, 3, 4, 6)
    for workers in (0, 1, 2)
    if LANES % (processes * max(workers, 1)) == 0
]
ROWS = 1200


@pytest.fixture(scope="module")
def corpora(texts, tmp_path_factory):
    """Two sources in each format, and their rows as one process without workers reads them."""
    folder = tmp_path_factory.mktemp("corpora")
    made = {kind: two_sources(folder / kind, texts, kind) for kind in ENDINGS}
    return {kind: (shards, take(iter(stream(shards, folder)), ROWS)) for kind, shards in made.items()}


def test_the_canonical_rows_are_what_these_tests_want(corpora):
    for kind, (shards, rows) in corpora.items():
        assert {shard.format for shard in shards} == {kind} and {shard.source for shard in shards} == {0, 1}
        assert [row.index for row in rows] == list(range(ROWS))
        assert all(row.lane == row.index % LANES for row in rows)
        for source in range(2):
            epochs = {row.cursor.cursors[source].epoch for row in rows[-LANES:]}
            assert min(epochs) >= 1, f"{kind}, source {source}: some lane is in its first epoch at the end: {epochs}"
        assert any(len(row.cu_seqlens) > 2 for row in rows) and any(len(row.cu_seqlens) == 2 for row in rows)


@pytest.mark.parametrize("kind", ENDINGS)
def test_the_rows_are_the_same_in_every_layout(corpora, tmp_path, kind):
    """Workers as parts of this process in every layout; as processes too in those below."""
    shards, expected = corpora[kind]
    assert len(LAYOUTS) >= 12
    for processes, workers in LAYOUTS:
        rows = take(together(shards, tmp_path, processes, workers), 360)
        assert differs(rows, expected[:360]) is None, f"{processes} x {workers}: {differs(rows, expected[:360])}"
    for processes, workers in {"jsonl": ((1, 1), (1, 2), (3, 2)), "tar": ((2, 1),)}.get(kind, ((1, 2),)):
        rows = take(together(shards, tmp_path, processes, workers, real=True), 360)
        assert differs(rows, expected[:360]) is None, f"{processes} x {workers}: {differs(rows, expected[:360])}"


def test_tokenised_shards_give_the_rows_of_their_text(corpora):
    """Made from the same texts under the same numbers: ids, documents and cursors."""
    (_, text), (_, tokens) = corpora["jsonl"], corpora["tokenised"]
    assert differs(tokens, text) is None, differs(tokens, text)


@pytest.mark.parametrize("number", range(20))
def test_a_chain_of_resumes_in_other_layouts_reads_what_one_read_gives(corpora, tmp_path, number):
    """4 to 7 resumes; the position goes through JSON, and rows that were read ahead are thrown away."""
    draw = random.Random(number)
    kind = list(ENDINGS)[number % 4]
    shards, expected = corpora[kind]
    resumes = draw.randint(4, 7)
    real = number < 4
    start = draw.randint(0, 300)
    state = json.dumps(to_json(cursors_behind(expected[:start])))
    history = []
    for _ in range(resumes + 1):
        processes, workers = draw.choice(LAYOUTS)
        count = processes * draw.randint(1, 900 // (resumes + 1) // processes)
        history.append(f"{start}: {processes} x {workers}")
        known = from_json(json.loads(state))
        rows = together(shards, tmp_path, processes, workers, real=real, start=start, cursors=known)
        taken = take(rows, count)
        found = differs(taken, expected[start : start + count])
        assert found is None, f"{kind}, {' -> '.join(history)}: {found}"
        ahead = take(rows, draw.randint(0, 5) * processes)
        assert all(row.index >= start + count for row in ahead)
        rows.close()
        state = json.dumps(to_json(cursors_behind(taken, known)))
        start += count
    epochs = {row.cursor.cursors[0].epoch for row in expected[:start]}
    assert len(epochs) > 1, "no epoch's end was crossed"


def test_a_resume_in_a_later_epoch_and_another_behind_it(corpora, tmp_path):
    """Two resumes, both in the second epoch or later of every lane."""
    for shards, expected in corpora.values():
        start = next(at for at in range(ROWS) if min(_epochs(expected[:at])) >= 1) + 5
        first = take(together(shards, tmp_path, 1, 0, start=start, cursors=cursors_behind(expected[:start])), 61)
        known = cursors_behind(first, cursors_behind(expected[:start]))
        second = take(together(shards, tmp_path, 3, 2, start=start + 61, cursors=known), 90)
        assert differs([*first, *second], expected[start : start + 151]) is None


def _epochs(rows) -> list[int]:
    found = cursors_behind(rows)
    return [cursor.epoch for lane in range(LANES) for cursor in (found[lane].cursors if lane in found else ())] or [0]


# ---- processes of torch.distributed


@pytest.fixture
def reading(tmp_path):
    """``reading(processes, steps, workers)`` starts reading.py on tmp_path; after the test it is gone."""
    started: list[subprocess.Popen] = []

    def start(*arguments: int) -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.data.reading", str(tmp_path), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_processes_that_are_killed_and_change_in_number_read_on(corpora, tmp_path, reading):
    """Two ranks, killed; one rank; four ranks: together they read what one uninterrupted read gives."""
    shards, expected = corpora["jsonl"]
    write_json(tmp_path / "manifest.json", build_manifest(shards, []))
    two = reading(2, 10_000, 1)
    begin = time.monotonic()
    while not (tmp_path / "state.json").exists() or read_json(tmp_path / "state.json")["step"] < 17:
        assert time.monotonic() - begin < 100 and two.poll() is None, "the ranks do not read"
        time.sleep(0.01)
    ranks = psutil.Process(two.pid).children()
    workers = [worker for rank in ranks for worker in rank.children()]
    assert len(ranks) == 2 and len(workers) == 2, "two ranks, each with a worker"
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    assert two.wait(20) == 1
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, f"workers that have outlived their ranks: {alive}"
    killed_at = read_json(tmp_path / "state.json")["step"]
    assert reading(1, killed_at + 9, 0).wait(100) == 0
    assert reading(4, killed_at + 20, 1).wait(100) == 0

    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["processes"] for line in log} == {1, 2, 4}
    assert [line["step"] for line in log if line["processes"] == 1] == list(range(killed_at + 1, killed_at + 10))
    seen = set()
    for line in log:  # the step that was under way when the ranks were killed may stand there twice
        rows = [tuple(row) for step in zip(*line["rows"], strict=True) for row in step]
        first = (line["step"] - 1) * LANES
        wanted = [(row.index, digest(row)) for row in islice(expected, first, first + LANES)]
        assert rows == wanted, f"step {line['step']} of {line['processes']} processes has other rows"
        seen.add(line["step"])
    assert seen == set(range(1, killed_at + 21)), "steps are missing"
